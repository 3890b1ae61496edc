"One trial per device: each runs in a process of its own and gives the same result as in this one."
import multiprocessing
import shutil
from unittest import mock

import torch

from clip_ft.core import Paths
from clip_ft.train_command import demo_config
from clip_ft.tune import Trial, draw_candidates, run_trial, tune


def test_trials_on_two_devices(split_shop, tmp_path, fork, capsys):
    two, one = (Paths(shutil.copytree(split_shop, tmp_path/name)) for name in ('two', 'one'))
    config = demo_config(epochs=1, batch_size=16)
    context = multiprocessing.get_context('forkserver')  # it has imported everything; new processes would have to
    with mock.patch.object(torch.multiprocessing, 'get_context', return_value=context):
        trials = tune(two, ['tiny'], config=config, devices=['cpu', 'cpu'], count=3)
    assert sorted(trials.candidate) == [0, 1, 2] and set(trials.epochs) == {1}
    assert f'The model was written to {two.best_model}.' in capsys.readouterr().out
    assert two.best_model.is_dir() and not (two.checkpoints/'tune').exists()
    candidate = draw_candidates(['tiny'], config, 3)[1]
    score = run_trial(Trial(1, candidate, 1, is_last=False), one, config, 'cpu')['score']
    assert score == trials.score[trials.candidate == 1].item()
