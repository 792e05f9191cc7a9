"""A measurement says which code it is of."""

import subprocess

from sb_mm import __version__
from sb_mm.engine import environment
from sb_mm.engine.environment import commit


def test_a_commit_has_a_plus_if_its_code_was_changed(tmp_path, monkeypatch):
    for folder in ('sb_mm', 'benchmarks'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'a.py').write_text('1')
    author = ['-c', 'user.name=a', '-c', 'user.email=a@a']
    for words in (['init'], ['add', '.'], [*author, 'commit', '-m', 'a']):
        command = ['git', '-C', tmp_path, *words]
        subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setattr(environment, 'repository', lambda: tmp_path)
    clean = commit()
    assert len(clean) >= 7
    assert clean.isalnum()
    (tmp_path / 'benchmarks/new.py').touch()
    assert (commit(), commit('benchmarks')) == (clean, f'{clean}+')
    (tmp_path / 'sb_mm/a.py').write_text('2')
    assert commit() == f'{clean}+'
    # A wheel has no clone; another one lies in somebody's repository.
    for found in (None, tmp_path / 'sb_mm'):
        monkeypatch.setattr(environment, 'repository', lambda at=found: at)
        assert commit() == f'sb_mm=={__version__}'
