"""A measurement says which code it is of."""

import subprocess

import pytest

from sb_mm import __version__
from sb_mm.engine import environment


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit with a file in each folder."""
    for folder in ('sb_mm', 'benchmarks'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'a.py').write_text('1')
    author = ['-c', 'user.name=a', '-c', 'user.email=a@a']
    for words in (['init'], ['add', '.'], [*author, 'commit', '-m', 'a']):
        command = ['git', '-C', str(tmp_path), *words]
        subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setattr(environment, 'repository', lambda: tmp_path)
    return tmp_path


def test_a_commit_has_a_plus_if_its_code_was_changed(repository):
    clean = environment.commit()
    assert len(clean) >= 7
    assert clean.isalnum()
    (repository / 'benchmarks/new.py').touch()
    assert environment.commit() == clean
    assert environment.commit('benchmarks') == f'{clean}+'
    (repository / 'sb_mm/a.py').write_text('2')
    assert environment.commit() == f'{clean}+'


@pytest.mark.parametrize('inside', [None, 'sb_mm'])
def test_the_commit_of_another_repository_is_not_given(
    repository, monkeypatch, inside
):
    """A wheel has no clone; the other one lies in somebody's repository."""
    found = inside and repository / inside
    monkeypatch.setattr(environment, 'repository', lambda: found)
    assert environment.commit() == f'sb_mm=={__version__}'
