"""The command `sb-mm` and what it finds from any folder."""

import pytest

from sb_mm import __main__ as command
from sb_mm.files import find_config, product_root


@pytest.mark.parametrize('name', ['nix', 't'])  # t: train or test
def test_the_tools_are_listed_where_none_or_several_are_meant(
    name, monkeypatch, capsys
):
    monkeypatch.setattr('sys.argv', ['sb-mm', name])
    with pytest.raises(SystemExit, match='2'):
        command.main()
    shown = capsys.readouterr()
    assert shown.err == f'error: no command {name}\n'
    assert '  train              Train the model of' in shown.out


def test_the_beginning_of_a_name_is_enough(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['sb-mm', 'convert-w', '--help'])
    with pytest.raises(SystemExit, match='0'):
        command.main()
    assert 'usage: convert_weights.py' in capsys.readouterr().out


def test_a_config_of_ours_is_found_unless_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'configs/ssd_sb_voc.py'
    ours = str(product_root() / name)
    assert find_config(name) == find_config('sb_mm::ssd_sb_voc.py') == ours
    (tmp_path / 'configs').mkdir()
    (tmp_path / name).touch()
    assert find_config(name) == name
