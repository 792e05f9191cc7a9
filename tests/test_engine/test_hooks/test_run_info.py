"""What is written beside a log."""

import subprocess
from pathlib import Path

import pytest

from sb_mm import __version__
from sb_mm.engine.hooks import run_info

FOLDERS = ('sb_mm', 'benchmarks')


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit with a file in each folder."""
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'a.py').write_text('1')
    author = ['-c', 'user.name=a', '-c', 'user.email=a@a']
    for words in (['init'], ['add', '.'], [*author, 'commit', '-m', 'a']):
        command = ['git', '-C', str(tmp_path), *words]
        subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setattr(run_info, 'repository', lambda: tmp_path)
    return tmp_path


def test_a_commit_has_a_plus_if_its_code_was_changed(repository):
    clean = run_info.commit()
    assert len(clean) >= 7
    assert clean.isalnum()
    assert run_info.commit('benchmarks') == clean
    (repository / 'sb_mm/a.py').write_text('2')
    assert run_info.commit() == f'{clean}+'


@pytest.mark.parametrize('name', ['a.py', 'new.py'])
def test_more_folders_count_where_they_are_asked_for(repository, name):
    clean = run_info.commit()
    (repository / 'benchmarks' / name).write_text('2')
    assert run_info.commit() == clean
    assert run_info.commit('benchmarks') == f'{clean}+'


@pytest.mark.parametrize('clone', [None, Path('sb_mm')])
def test_the_commit_of_another_repository_is_not_given(
    repository, monkeypatch, clone
):
    """A wheel has no clone; the other one lies in somebody's repository."""
    found = clone and repository / clone
    monkeypatch.setattr(run_info, 'repository', lambda: found)
    assert run_info.commit() == f'sb_mm=={__version__}'
