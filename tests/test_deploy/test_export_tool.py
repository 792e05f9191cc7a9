"""What is exported, what is refused, and what the tool leaves behind."""

import os
import runpy
import signal
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from sb_mm.errors import UserInputError
from sb_mm.models import AttentionMobileNetV2

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytest.importorskip('mmdet')

from tiny_detector import SIDE, TEST_CFG, detector, write_config  # noqa: E402

from sb_mm.deploy import export  # noqa: E402
from sb_mm.deploy.onnx import (  # noqa: E402
    exportable,
    require_packages,
    to_onnx,
    wrapper_of,
)
from sb_mm.deploy.onnx_runner import OnnxRunner  # noqa: E402

TOOL = Path(__file__).resolve().parents[2] / 'tools/export_onnx.py'
pytestmark = pytest.mark.usefixtures('small')


class Singular(nn.Module):
    output_names = ('y',)

    def forward(self, x):
        return x * torch.linalg.svdvals(x.flatten(1)).sum()


def test_networks_that_cannot_be_exported_are_named():
    with pytest.raises(UserInputError, match=r'cannot be.*_linalg_svd'):
        to_onnx(Singular().eval(), torch.rand(2, 3, 4, 4), dynamic=False)
    with pytest.raises(UserInputError, match='AttentionMobileNetV2 cannot'):
        wrapper_of(AttentionMobileNetV2(out_indices=(2,)))
    # A head that says more of a prior than scores and a box.
    model = detector()
    model.bbox_head.forward = lambda x: (x, x, x)
    with pytest.raises(UserInputError, match='SSDLiteHead cannot be exported'):
        exportable(model, (SIDE, SIDE))


def test_what_is_missing_for_the_export_is_named(monkeypatch):
    monkeypatch.setattr(
        'sb_mm.deploy.onnx.find_spec', lambda n: n != 'onnxruntime' or None
    )
    with pytest.raises(UserInputError, match='runtime: pip install'):
        require_packages()
    monkeypatch.setattr(torch, '__version__', '2.5.1')
    with pytest.raises(UserInputError, match='needs PyTorch 2.6 or later'):
        require_packages()


def test_a_file_of_others_is_refused(detector_file, tmp_path):
    path = tmp_path / 'a.onnx'
    path.write_bytes(b'no network')
    with pytest.raises(UserInputError, match='Protobuf'):
        OnnxRunner(path)
    foreign = detector_file('raw')
    del foreign.metadata_props[:]
    onnx.save(foreign, str(path))
    with pytest.raises(UserInputError, match='that tools/export_onnx.py wro'):
        OnnxRunner(path)


@pytest.fixture
def config(tiny_devkit, tmp_path):
    devkit = tiny_devkit(lists={'test': ['a', 'b', 'c', 'd']})
    return write_config(devkit, tmp_path / 'config.py')


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Run the tool as the shell would; return exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*argv):
        monkeypatch.setattr('sys.argv', [str(TOOL), *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name='__main__')
        captured = capsys.readouterr()
        code = stop.value.code
        return code, captured.out, f'{captured.err}{code}'

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=detector().state_dict()), path)
    return path


@pytest.fixture
def exported(detector_file, monkeypatch):
    """Without the seconds of an export."""
    file = detector_file('raw')
    monkeypatch.setattr(export, 'to_onnx', lambda *_, **__: file)


def test_the_tool_exports_checks_and_evaluates(
    tool, config, checkpoint, tmp_path
):
    out = tmp_path / 'net.onnx'
    code, printed, error = tool(
        config, checkpoint, '--out', out, '--nms', '--evaluate'
    )
    assert code == 0, error
    assert "images ['batch', 3, 48, 48] tensor(float)" in printed
    assert '\n0 of ' in printed
    shown = dict(
        line.split(': ') for line in printed.splitlines() if 'mAP_' in line
    )
    assert shown['PyTorch'] == shown['ONNX Runtime']
    texts = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert texts['classes'] == '["square", "disc"]'
    assert texts['channels'] == '"BGR"'
    assert OnnxRunner(out).test_cfg == TEST_CFG


def test_a_file_that_differs_is_not_written(tool, config, exported, tmp_path):
    out = tmp_path / 'config.onnx'
    out.write_text('an earlier one')
    # Random weights, and a file of others.
    code, printed, error = tool(config)
    assert code not in (0, 2)
    assert 'no checkpoint given: the weights are random' in printed
    assert 'The boxes differ from' in error
    assert error.endswith(': no file was written.')
    assert out.read_text() == 'an earlier one'


def test_ended_in_the_middle_nothing_is_left(
    tool, config, checkpoint, exported, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        'sb_mm.files.os.fsync', lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
    code, printed, _ = tool(
        *(config, checkpoint, '--out', 'net.onnx', '--check-images', 1),
        # Raw outputs are exported whatever follows them.
        *('--cfg-options', 'model.test_cfg.nms_pre=10'),
    )
    assert code == 128 + signal.SIGTERM
    assert 'largest difference of scores' in printed
    assert not list(tmp_path.glob('*net.onnx*'))


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ('--out nowhere/net.onnx', "'nowhere/net.onnx' cannot be written"),
        ('--out net.pth', 'no name of a file in .onnx'),
        ('--out=', "'.' cannot be written (no name"),
        (f'--out {"n" * 300}.onnx', 'File name too long'),
        ('hostile.pth', '--trust-checkpoint'),
        ('--check-images 0', '--check-images must be'),
        ('--data-root elsewhere', 'elsewhere'),
        ('--evaluate --cfg-options test_evaluator=None', 'no test_evaluator'),
        ('--nms --cfg-options model.test_cfg.nms_pre=10', 'keeps only some'),
        ('--nms --cfg-options model.test_cfg.nms.type=soft_nms', 'soft_nms'),
        ('--nms --cfg-options model.test_cfg.nms.class_agnostic=1', 'agnosti'),
    ],
)
def test_bad_input_is_refused_before_the_export(
    tool, config, argv, message, monkeypatch, tmp_path
):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(a=Namespace()), tmp_path / 'hostile.pth')
    monkeypatch.setattr(export, 'to_onnx', None)
    code, _, error = tool(config, *argv.split())
    assert code == 2
    assert message in error
