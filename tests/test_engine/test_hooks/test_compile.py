"""Backbone and neck are compiled for a training, and for it only."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from sb_mm.errors import UserInputError

from ..conftest import tiny_runner


class Bare(BaseModel):
    """Without the method that is compiled."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.linear(inputs).square().mean())


class Classifier(Bare):
    """As the hosts' models are made."""

    def extract_feat(self, inputs):
        return self.linear(inputs)

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.extract_feat(inputs).square().mean())


def _train(folder, model, accumulate=1, **hook):
    images = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    loader = dict(
        dataset=[dict(inputs=image) for image in images],
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        batch_size=4,  # the last batch of an epoch has 2
        num_workers=0,
    )
    optimizer = dict(type='SGD', lr=0.1)
    wrapper = dict(optimizer=optimizer, accumulative_counts=accumulate)
    return tiny_runner(
        model,
        folder,
        10,
        train_dataloader=loader,
        optim_wrapper=wrapper,
        custom_hooks=[hook] if hook else [],
    ).train()


def test_a_training_is_compiled_once_for_each_size(tmp_path):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    torch.manual_seed(0)
    hook = dict(type='sb_mm.CompileHook', backend=backend)
    compiled = _train(tmp_path, Classifier(), **hook)
    assert len(graphs) == 2
    torch.manual_seed(0)
    eager = _train(tmp_path, Classifier())
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict())
    # The model is as it was, so that it can be copied and saved whole.
    assert 'extract_feat' not in vars(compiled)


def test_what_cannot_be_compiled_is_refused(tmp_path):
    hook = dict(type='sb_mm.CompileHook')
    with pytest.raises(UserInputError, match='Bare does not have'):
        _train(tmp_path, Bare(), **hook)
    with pytest.raises(UserInputError, match='accumulative_counts .* set it'):
        _train(tmp_path, Classifier(), 2, **hook, mode='reduce-overhead')
