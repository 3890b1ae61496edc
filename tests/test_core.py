"Atomic writes, console scripts and worker processes."

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import snapshot

from clip_ft import core
from clip_ft.core import InputError, atomic_write, console_script
from clip_ft.dataset import PixelCache, ResizeSpec, pixel_blocks
from clip_ft.images import check_images


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path/'a.csv'
    path.write_text('old')
    with pytest.raises(error), atomic_write(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == '.csv'
        temporary.write_text('new')
        raise error
    assert snapshot(tmp_path) == {'a.csv': b'old'}


def test_atomic_write_from_many_threads(tmp_path):
    def write(i):
        with atomic_write(tmp_path/'a.txt') as temporary:
            temporary.write_text(str(i)*1000)
    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((tmp_path/'a.txt').read_text())) == 1 and len(snapshot(tmp_path)) == 1


@pytest.mark.parametrize('error, code, line', [
    (InputError('Bad\n\nthing.'), 2, 'error: Bad thing.'),
    (FileNotFoundError(2, 'No such file', 'x.csv'), 2, 'x.csv'),
    (KeyboardInterrupt(), 130, 'interrupted; repeat the command to go on'),
])
def test_console_script(capsys, error, code, line):
    main = console_script(Mock(side_effect=error, __name__='main'))
    with pytest.raises(SystemExit) as stop:
        main([])
    err = capsys.readouterr().err
    assert stop.value.code == code and line in err and err.count('\n') == 1
    with pytest.raises(SystemExit) as stop:
        main(['--debug'])
    err = capsys.readouterr().err
    assert stop.value.code == code and line in err and err.startswith('Traceback')


def test_console_script_reports_bugs(capsys):
    "One line that names a file with the traceback."
    main = console_script(Mock(side_effect=KeyError('a bug'), __name__='main'))
    with pytest.raises(SystemExit) as stop:
        main([])
    err = capsys.readouterr().err
    assert stop.value.code == 1 and err.startswith("error: KeyError: 'a bug'.") and err.count('\n') == 1
    log = Path(re.search(r'in (\S+\.log)', err)[1])
    assert log.read_text().startswith('Traceback') and "KeyError: 'a bug'" in log.read_text()
    log.unlink()


def test_characters_that_the_terminal_does_not_have():
    code = r"import clip_ft.core as core; core.console_script(lambda argv: print('caf\u00e9 \udce9 \U0001f457'))([])"
    environment = os.environ | dict(PYTHONIOENCODING='ascii')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, 'caf\\xe9 \\udce9 \\U0001f457\n', '')


def test_a_closed_pipe_is_not_an_error():
    code = "import clip_ft.core as core; core.console_script(lambda argv: [print('x'*99) for _ in range(10**5)])([])"
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait(60) == 0


@pytest.fixture
def four_cores():
    "Simulate four cores, and start processes for two images or more."
    if sys.platform != 'linux':
        pytest.skip('only Linux forks')
    with patch.object(core, 'PROCESS_THRESHOLD', 1), patch.object(os, 'sched_getaffinity', lambda _: range(4)):
        yield


@pytest.mark.usefixtures('four_cores')
def test_processes_and_threads_give_equal_results(catalogue, tmp_path):
    image_dir = catalogue/'data'
    (image_dir/'5.jpg').write_bytes(b'<html>404</html>')
    names = [f'{i}.jpg' for i in range(21)]  # 5.jpg is not an image, 20.jpg is missing
    paths = [image_dir/name for name in names]
    good = [image_dir/name for name in names if name not in ('5.jpg', '20.jpg')]
    spec = ResizeSpec(16)

    def decode(cache_folder):
        with pytest.raises(InputError, match=r'5\.jpg.*not an image'):
            list(pixel_blocks(paths, spec))
        pixels = np.concatenate(list(pixel_blocks(good, spec, block_size=6)))
        cached = PixelCache.build(good, 16, tmp_path/cache_folder).pixels
        return check_images(image_dir, names), pixels, cached

    checked, pixels, cached = decode('processes')
    with patch.object(core, 'PROCESS_THRESHOLD', 100):
        expected, expected_pixels, expected_cached = decode('threads')
    pd.testing.assert_frame_equal(checked, expected)
    assert checked['problem'][5].startswith('not an image') and checked['problem'][20] == 'image is missing'
    for array in (pixels, cached, expected_cached):
        assert np.array_equal(array, expected_pixels)


ENDLESS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits that it is ignored
os.sched_getaffinity = lambda _: range(4)
from clip_ft.images import check_images
print('ready', flush=True)
check_images(sys.argv[1], [f'{i % 20}.jpg' for i in range(3_000_000)])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux forks')
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent(catalogue, how):
    process = subprocess.Popen([sys.executable, '-c', ENDLESS, catalogue/'data'], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == 'ready\n'
    workers = []
    deadline = time.monotonic() + 60
    while len(workers) < 4 and time.monotonic() < deadline:
        workers = psutil.Process(process.pid).children()
        time.sleep(.05)
    assert len(workers) == 4
    time.sleep(.5)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # Ctrl-C reaches the whole group
    else:
        process.kill()
    _, err = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive and process.returncode
    if how == signal.SIGINT:
        assert err.count('KeyboardInterrupt') == 1 and 'Process Fork' not in err, err[-2000:]
