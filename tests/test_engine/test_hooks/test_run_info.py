"""What is written beside a log."""

import subprocess

import pytest

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
    monkeypatch.setattr(run_info, '_REPOSITORY', tmp_path)
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


def test_without_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(run_info, '_REPOSITORY', tmp_path)
    assert run_info.commit('benchmarks') == 'unknown'
