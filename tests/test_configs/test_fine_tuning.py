"""Fine-tuning starts as the published network and trains what is new."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from sb_mm.models import AttentionMobileNetV2

from .learning_rates import learning_rates

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FINETUNE = CONFIGS / 'voc/ssd_sb_finetune.py'


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A checkpoint of random weights, as tools/convert_weights.py writes."""
    torch.manual_seed(0)
    model = AttentionMobileNetV2()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    state = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    path = tmp_path_factory.mktemp('weights') / 'ours.pth'
    torch.save(dict(state_dict=state), path)
    return str(path)


@pytest.fixture
def cfg(published):
    init_default_scope('mmdet')
    cfg = Config.fromfile(FINETUNE)
    cfg.model.backbone.init_cfg.checkpoint = published
    return cfg


def built(config):
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.init_weights()
    return model


@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
def test_sb_starts_as_exactly_the_static_network(cfg, train):
    static = {**cfg.model.backbone, 'type': 'sb_mm.AttentionMobileNetV2'}
    del static['lambda_init']
    sb, static = built(cfg.model.backbone), built(static)
    images = torch.randn(3, 3, 96, 96)
    for model in (sb, static):
        model.train(train)
    for ours, theirs in zip(sb(images), static(images), strict=True):
        assert torch.equal(ours, theirs)
        assert theirs.std() > 0.01
    # With a lambda, it would be another network.
    for name, parameter in sb.named_parameters():
        if name.endswith('lambda_'):
            nn.init.constant_(parameter, 0.1)
    assert not torch.equal(sb(images)[0], static(images)[0])


def test_gates_learn_after_the_first_step(cfg):
    backbone = built(cfg.model.backbone).train()
    optimizer = build_optim_wrapper(backbone, cfg.optim_wrapper)
    images = torch.randn(8, 3, 64, 64)
    named = dict(backbone.named_parameters())
    groups = [
        [p for name, p in named.items() if name.endswith(end)]
        for end in ('lambda_', 'attention.gate.fc2.weight')
    ]
    assert [len(group) for group in groups] == [50, 50]

    def gradients():
        loss = sum(out.square().mean() for out in backbone(images))
        optimizer.zero_grad()
        optimizer.backward(loss)
        return [[p.grad.abs().max() for p in group] for group in groups]

    of_lambdas, of_gates = gradients()
    assert all(g > 0 for g in of_lambdas)
    # A gate is scaled by its lambda, and so is its gradient.
    assert all(g == 0 for g in of_gates)
    optimizer.step()
    _, of_gates = gradients()
    assert all(g > 0 for g in of_gates)


def test_only_the_published_trunk_learns_slowly(cfg, published):
    model = built(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = wrapper.param_groups
    rates = {id(p): g['lr'] for g in groups for p in g['params']}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    state = torch.load(published, weights_only=True)['state_dict']
    rate = cfg.optim_wrapper.optimizer.lr
    for name, value in found.items():
        expected = 0.1 * rate if name in state else rate
        assert value == pytest.approx(expected), name
    assert len(set(found.values())) == 2


def test_the_rate_rises_for_one_epoch_and_falls_to_zero(tmp_path):
    rates = learning_rates(FINETUNE, 5, tmp_path, batches=4)
    assert rates[:4] == pytest.approx([1e-5, 0.00334, 0.00667, 0.01])
    cosine = [0.01 * (1 + math.cos(math.pi * e / 5)) / 2 for e in range(1, 5)]
    assert rates[4::4] == pytest.approx(cosine)


@pytest.mark.parametrize(
    'file', ['voc/ssd_sb_custom.py', 'coco/ssd_sb_custom_coco.py']
)
def test_custom_data_take_it_as_their_base(file, tmp_path):
    text = (CONFIGS / file).read_text()
    base = "'../ssd_sb_voc.py'"
    assert base in text
    config = tmp_path / 'mine.py'
    config.write_text(text.replace(base, repr(str(FINETUNE))))
    cfg, given = Config.fromfile(config), Config.fromfile(FINETUNE)
    assert cfg.model.backbone == given.model.backbone
    assert cfg.optim_wrapper == given.optim_wrapper
    assert cfg.model.bbox_head.num_classes == 2
    assert cfg.train_dataloader.dataset.metainfo.classes == ('cat', 'dog')
