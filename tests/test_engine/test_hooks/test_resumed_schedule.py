"""A resume that keeps the last rate of the old schedule is refused."""

from types import SimpleNamespace

import pytest
from mmengine.optim import MultiStepLR
from torch import nn
from torch.optim import SGD

from sb_mm.engine.hooks import ResumedScheduleHook
from sb_mm.errors import UserInputError

EPOCH = 5  # iterations


def _resume(end, before, now, **cfg):
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = MultiStepLR(optimizer, milestones=[1], end=end)
    runner = SimpleNamespace(
        cfg=dict(resume=True, **cfg),
        param_schedulers=[schedule],
        train_dataloader=range(EPOCH),
        max_iters=now * EPOCH,
    )
    info = dict(max_iters=before * EPOCH)
    checkpoint = dict(
        param_schedulers=[schedule.state_dict()],
        message_hub=dict(runtime_info=info),
    )
    ResumedScheduleHook().after_load_checkpoint(runner, checkpoint)


def test_more_epochs_than_a_schedule_with_a_fixed_end():
    message = r'ends at iteration 10, not 20\).* load_from=CHECKPOINT'
    for before in (1, 2):
        with pytest.raises(UserInputError, match=message):
            _resume(end=2, before=before, now=4)
    _resume(end=2, before=2, now=4, schedule_named=True)


@pytest.mark.parametrize(
    ('end', 'before', 'now'), [(2, 2, 2), (2, 3, 4), (4, 2, 4), (10**9, 2, 4)]
)
def test_a_schedule_that_is_followed(end, before, now):
    _resume(end, before, now)
