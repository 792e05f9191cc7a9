"""From a config with a pipeline to one whose images live on the device."""

from mmengine.config import Config, ConfigDict

from sb_mm.errors import UserInputError

from .checks.options import apply_options

_READING = ('LoadImageFromFile', 'Resize', 'CenterCrop')


def use_device_data(cfg: Config, channels_last: bool = False) -> None:
    """Let a classifier's config keep its images on the device, in place.

    Wraps every dataset in ``sb_mm.IndexedImages``, and hands crop and flip of
    the training pipeline, mean and std to ``sb_mm.OnDeviceAugmentation``:
    the images have the same distribution.

    Args:
        cfg: Config for mmpretrain, with small images of one size.
        channels_last: See ``OnDeviceAugmentation``.

    Raises:
        UserInputError: If the config does something with its images that
            the preprocessor cannot do.
    """
    # MMEngine's order: the top level is what a model without one gets.
    given = cfg.model.get('data_preprocessor') or cfg.pop('data_preprocessor')
    cfg.model.data_preprocessor = ConfigDict(
        given,
        **_augmentation(cfg.train_dataloader.dataset),
        type='sb_mm.OnDeviceAugmentation',
        channels_last=channels_last,
    )
    for name in ('val_dataloader', 'test_dataloader'):
        if _augmentation(cfg[name].dataset):
            raise UserInputError(
                'OnDeviceAugmentation neither crops nor flips outside of '
                f'training, but the pipeline of {name} does: leave that out.'
            )
    apply_options(cfg, {})  # it checks the arguments
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        _wrap(cfg[name])


def _augmentation(dataset: ConfigDict) -> dict:
    """Return the preprocessor's arguments for the end of a pipeline."""
    steps = [dict(step) for step in dataset.pipeline]
    count = sum(step['type'] in _READING for step in steps)
    match steps[count:]:
        case [] | [{'type': 'PackInputs'}]:
            return {}
        case [
            {'type': 'RandomCrop', 'crop_size': int() as size, **more},
            {'type': 'RandomFlip', 'prob': chance, **direction},
            {'type': 'PackInputs'},
        ] if (
            direction in ({}, dict(direction='horizontal'))
            and isinstance(more.setdefault('padding', 0), int)
            and len(more) == 1
        ):
            return dict(more, crop_size=size, flip_prob=chance)
    raise UserInputError(
        'OnDeviceAugmentation can take the place of RandomCrop, with whole '
        'numbers for crop_size and padding, horizontal RandomFlip and '
        'PackInputs, behind all other transforms, but the pipeline of the '
        f'{dataset.type} is {steps}: leave the data in the pipeline of the '
        'host.'
    )


def _wrap(loader: ConfigDict) -> None:
    dataset = loader.dataset
    dataset.pipeline = [t for t in dataset.pipeline if t.type in _READING]
    loader.dataset = ConfigDict(type='sb_mm.IndexedImages', dataset=dataset)
    loader.num_workers = 0
    loader.persistent_workers = False
    # Pinning would copy all images for each batch.
    loader.pin_memory = False
    loader.collate_fn = ConfigDict(type='sb_mm.whole_batch')
