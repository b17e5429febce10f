"The job that writes reports: of the latest run, of those that are named, and never over a file of another kind."
from pathlib import Path

import pytest

from miniai.jobs.config import ConfigError
from miniai.jobs.report import ReportConfig, report_runs
from recorded import Page, write_run


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


def page(path): return Page(Path(path).read_text('utf-8'))


def test_one_run_has_its_report_in_its_folder_and_several_in_the_current_one(capsys):
    for nm in 'ab': write_run(Path(nm))
    report_runs(ReportConfig((Path('a'),)))
    report_runs(ReportConfig((Path('a'), Path('b'))))
    assert capsys.readouterr().out.splitlines() == ['a/report.html', 'report.html']
    assert 'Best values of each run' in page('report.html').tables


def test_without_a_run_the_latest_one_is_taken(capsys):
    for nm in ('2026-01-02_030405', '2026-11-02_030405', '2026-03-02_030405'): write_run(Path(f'runs/{nm}-train'))
    report_runs(ReportConfig())
    assert capsys.readouterr().out == 'runs/2026-11-02_030405-train/report.html\n'


def test_out_names_a_file_or_a_folder_and_a_report_is_replaced():
    write_run(Path('a'))
    Path('out').mkdir()
    for out in ('out', 'x.html', 'x.html'): report_runs(ReportConfig((Path('a'),), out))
    assert page('out/report.html').tables.keys() == page('x.html').tables.keys()


def test_a_file_that_is_no_report_is_never_overwritten():
    write_run(Path('a'))
    Path('thesis.html').write_text('years of work')
    with pytest.raises(ConfigError, match=r'thesis\.html exists and is no report'):
        report_runs(ReportConfig((Path('a'),), 'thesis.html'))
    assert Path('thesis.html').read_text() == 'years of work'


def test_a_folder_without_a_run_is_an_error():
    Path('empty').mkdir()
    with pytest.raises(FileNotFoundError, match='empty is not the folder of a run'):
        report_runs(ReportConfig((Path('empty'),)))
    with pytest.raises(FileNotFoundError, match='no run'): report_runs(ReportConfig())
