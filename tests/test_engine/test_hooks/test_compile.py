"""Backbone and neck are compiled for a training, and for it only."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import nn

from sb_mm.engine.hooks import CompileHook
from sb_mm.errors import UserInputError

from ..conftest import loader_of, tiny_runner


class Classifier(BaseModel):
    """As the hosts' models are made."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def extract_feat(self, inputs):
        return self.linear(inputs)

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.extract_feat(inputs).square().mean())


def _train(folder, *hooks):
    torch.manual_seed(0)
    images = torch.randn(10, 3)
    loader = loader_of(
        [dict(inputs=image) for image in images],
        collate_fn=dict(type='default_collate'),
        batch_size=4,  # the last batch of an epoch has 2
    )
    return tiny_runner(
        Classifier(),
        folder,
        10,
        train_dataloader=loader,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[*hooks],
    ).train()


def test_a_training_is_compiled_once_for_each_size(tmp_path):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    hook = dict(type='sb_mm.CompileHook', backend=backend)
    compiled = _train(tmp_path, hook)
    assert len(graphs) == 2
    eager = _train(tmp_path)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict())
    # The model is as it was, so that it can be copied and saved whole.
    assert 'extract_feat' not in vars(compiled)


def test_what_cannot_be_compiled_is_refused():
    linear = SimpleNamespace(model=nn.Linear(1, 1))
    with pytest.raises(UserInputError, match='Linear does not have'):
        CompileHook().before_train(linear)
    model = Classifier()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1), 2)
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper)
    with pytest.raises(UserInputError, match='accumulative_counts .* set it'):
        CompileHook('reduce-overhead').before_train(runner)
