"The check-up of a catalogue: clip_ft_checkup with its report, its list of findings and its corrected table."
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import snapshot

from clip_ft import catalogue_checks, checkup, checkup_report
from clip_ft.catalogue_checks import CHECKS, Check, CheckupData
from clip_ft.commands import checkup_main
from clip_ft.core import Paths
from clip_ft.findings import FINDING_COLUMNS, findings_table
from clip_ft.record import read_source
from clip_ft.tables import read_table

HOSTILE = '<script>alert("1")</script>\x1b[31m\u202eevil'


def wrong_categories(data):
    "Finds the first three products."
    reasons = [HOSTILE, 'Similar products are in Bags.', 'Similar products are in Bags.']
    return findings_table(data.products, [0, 1, 2], 'wrong category', reasons, [.99, .95, .5], 'category',
                          ['=HYPERLINK("http://x")', 'Bags', 'Hats'])


def duplicates(data):
    "Finds two groups."
    return findings_table(data.products, [3, 4, 5, 6], 'duplicate', 'The images are equal.', [1., 1., .8, .8],
                          group=['1', '1', '2', '2'])


@pytest.fixture
def own_checks(monkeypatch):
    "Replace the checks by two with known findings."
    checks = {'rows': CHECKS['rows'], 'categories': Check(('wrong category',), wrong_categories),
              'duplicates': Check(('duplicate',), duplicates)}
    monkeypatch.setattr(catalogue_checks, 'CHECKS', checks)
    monkeypatch.setattr(catalogue_checks.run_checks, '__defaults__', ((), checks, True))
    return checks


def table_of(root):
    "The table of the catalogue of a project."
    return Paths(root).extracted/read_source(Paths(root))['folder']/'data.csv'


def test_report_list_and_corrected_table(shop, tmp_path, run, own_checks):
    before = snapshot(shop[0])
    report, findings, fixed = (tmp_path/name for name in ('check.html', 'findings.csv', 'corrected.csv'))
    options = ['--root', shop[0], '--report', report, '--csv', findings, '--fix', fixed]
    printed = run(checkup_main, *options)
    assert '2 products are listed more than once' in printed
    assert '3 products seem to be in the wrong category' in printed
    assert snapshot(shop[0]) == before

    listed = read_table(findings)
    assert list(listed) == [*FINDING_COLUMNS, 'row']
    table, copy = read_table(table_of(shop[0])), read_table(fixed)
    named = table['image'].iloc[listed['row'].astype(int) - 2]
    assert named.tolist() == listed['image'].tolist()

    changed = copy['changes'] != ''
    assert changed.sum() == 2  # the third suggestion is not sure enough
    assert set(copy['category'][changed]) == {"'=HYPERLINK(\"http://x\")", 'Bags'}
    assert copy[~changed].drop(columns='changes').equals(table[~changed])
    assert copy.drop(columns=['category', 'changes']).equals(table.drop(columns='category'))

    contents = [path.read_bytes() for path in (report, findings, fixed)]
    run(checkup_main, *options)
    assert [path.read_bytes() for path in (report, findings, fixed)] == contents


def test_least_changes_more(shop, tmp_path, run, own_checks):
    run(checkup_main, '--root', shop[0], '--fix', tmp_path/'f.csv', '--least', '.4', '--kinds', 'wrong category')
    assert (read_table(tmp_path/'f.csv')['changes'] != '').sum() == 3


def test_report_is_self_contained_and_escaped(shop, tmp_path, run, own_checks):
    run(checkup_main, '--root', shop[0], '--report', tmp_path/'check.html', '--kinds', 'duplicate',
        'wrong category')
    page = (tmp_path/'check.html').read_text(encoding='utf-8')
    assert '<script' not in page and '\x1b' not in page and '\u202e' not in page
    assert '&lt;script&gt;' in page
    assert page.count('<img ') == 7
    assert all(source.startswith('data:image/jpeg;base64,') for source in re.findall(r'src="([^"]*)"', page))
    link = re.search(r'<a href="([^"#]+)#row=\d+">data.csv</a>, row \d+', page)[1]
    assert (tmp_path/link).resolve() == table_of(shop[0]).resolve()


def test_original_is_never_written(shop, tmp_path, run, own_checks):
    before = snapshot(shop[0])
    table, paths = table_of(shop[0]), Paths(shop[0])
    (tmp_path/'link.csv').symlink_to(table)
    for path in (table, table.with_name('new.csv'), tmp_path/'link.csv', paths.train_csv):
        for option in ('--fix', '--csv'):
            assert 'never changed' in run(checkup_main, '--root', shop[0], option, path, refused=True)
    assert 'never changed' in run(checkup_main, '--root', shop[0], '--report', table, refused=True)
    assert 'same file' in run(checkup_main, '--root', shop[0], '--csv', tmp_path/'a.csv', '--fix', tmp_path/'a.csv',
                              refused=True)
    assert snapshot(shop[0]) == before


def test_failed_and_interrupted_checks(shop, tmp_path, run, own_checks):
    def broken(data):
        raise ValueError(f'cannot read {HOSTILE}\nsecond line')

    def interrupted(data):
        raise KeyboardInterrupt
    own_checks |= {'sharpness': Check(('blurred',), broken), 'slow': Check(('slow',), interrupted)}
    printed = run(checkup_main, '--root', shop[0], '--report', tmp_path/'check.html')
    assert 'Warning: The check sharpness failed' in printed and 'the checks slow are not done' in printed
    assert '2 products are listed more than once' in printed and '\x1b' not in printed
    page = (tmp_path/'check.html').read_text(encoding='utf-8')
    assert 'The check sharpness failed' in page and '<script' not in page
    with pytest.warns(UserWarning, match='sharpness failed'):
        assert len(checkup(shop[0], kinds=['duplicate', 'blurred'], progress=False)) == 4


def test_broken_images_and_missing_files(copied_shop, tmp_path, run):
    data = CheckupData(Paths(copied_shop))
    names = data.products['image']
    (Path(data.image_dir)/names[0]).write_bytes(b'no image')
    (Path(data.image_dir)/names[1]).unlink()
    run(checkup_main, '--root', copied_shop, '--report', tmp_path/'a.html', '--csv', tmp_path/'a.csv')
    assert (tmp_path/'a.html').stat().st_size < 2_000_000


def test_unused_rows(copied_shop, tmp_path, run):
    rejects = Paths(copied_shop).rejects_csv
    pd.DataFrame(dict(row=[17], image=["'=1.jpg"], reason=['image is missing'])).to_csv(rejects, index=False)
    run(checkup_main, '--root', copied_shop, '--kinds', 'unused row', '--csv', tmp_path/'a.csv')
    found = read_table(tmp_path/'a.csv')
    assert found['reason'].tolist() == ['Row 17 is not used: image is missing.']
    assert found['image'].tolist() == ["'=1.jpg"]


def test_wrong_arguments(shop, tmp_path, run):
    assert 'no kind of finding' in run(checkup_main, '--root', shop[0], '--kinds', 'ugly', refused=True)
    assert 'clip_ft_preprocess' in run(checkup_main, '--root', tmp_path, refused=True)
    assert 'ends in .csv' in run(checkup_main, '--root', shop[0], '--fix', tmp_path/'a.xlsx', refused=True)
    assert checkup_report.describe_findings(pd.DataFrame(columns=FINDING_COLUMNS)) == []
