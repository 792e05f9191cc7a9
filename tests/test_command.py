"""The command `sb-mm` and what it finds from any folder."""

import pytest

from sb_mm import __main__ as command
from sb_mm.files import find_config, product_root


def call(monkeypatch, capsys, *argv):
    monkeypatch.setattr('sys.argv', ['sb-mm', *argv])
    with pytest.raises(SystemExit) as stop:
        command.main()
    return stop.value.code, *capsys.readouterr()


def test_a_command_is_a_tool(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, 'convert-weights', '--help')
    assert code == 0
    assert 'usage: convert_weights.py' in out
    code, out, error = call(monkeypatch, capsys, 'nix')
    assert (code, error) == (2, 'error: no command nix\n')
    assert '  train              Train the model of' in out


def test_a_config_of_ours_is_found_unless_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'configs/ssd_sb_voc.py'
    ours = str(product_root() / name)
    assert find_config(name) == find_config('sb_mm::ssd_sb_voc.py') == ours
    (tmp_path / 'configs').mkdir()
    (tmp_path / name).touch()
    assert find_config(name) == name
