"""From a config with a pipeline to one whose images live on the device."""

from mmengine.config import Config, ConfigDict

from sb_mm.errors import UserInputError

_READING = ('LoadImageFromFile', 'Resize', 'CenterCrop')
# Arguments of the preprocessor that ClsDataPreprocessor shares.
_SHARED = {'type', 'mean', 'std', 'to_rgb', 'num_classes'}


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
            the preprocessor cannot do; it is left as it was.
    """
    # MMEngine's order: the top level is what a model without one gets.
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    preprocessor = dict(given or {})
    _check_preprocessor(preprocessor, cfg)
    preprocessor.update(
        _augmentation(cfg.train_dataloader.dataset),
        type='sb_mm.OnDeviceAugmentation',
        channels_last=channels_last,
    )
    names = ('val_dataloader', 'test_dataloader')
    held_out = [cfg[name] for name in names if cfg.get(name)]
    for loader in held_out:
        if _augmentation(loader.dataset):
            raise UserInputError(
                'OnDeviceAugmentation neither crops nor flips outside of '
                'training, but a pipeline of validation or test does: leave '
                'that out.'
            )
    cfg.model.data_preprocessor = ConfigDict(preprocessor)
    cfg.pop('data_preprocessor', None)
    for loader in (cfg.train_dataloader, *held_out):
        _wrap(loader)
    if cfg.get('val_cfg') is not None:
        cfg.val_cfg.type = 'sb_mm.BatchedValLoop'


def _check_preprocessor(given: dict, cfg: Config) -> None:
    kind = given.get('type', 'ClsDataPreprocessor')
    fits = {'mean', 'std'} <= set(given) <= _SHARED
    batches = cfg.model.get('train_cfg')
    if kind != 'ClsDataPreprocessor' or not fits or batches:
        raise UserInputError(
            "OnDeviceAugmentation can take the place of mmpretrain's "
            'ClsDataPreprocessor with mean, std, to_rgb and num_classes, '
            f'without batch augmentation, but the config has {given} and '
            f'model.train_cfg={batches}: leave the data in the pipeline of '
            'the host.'
        )


def _augmentation(dataset: ConfigDict) -> dict:
    """Return the preprocessor's arguments for the end of a pipeline."""
    # A dataset that wraps others has none.
    steps = [dict(step) for step in dataset.get('pipeline', [{}])]
    count = sum(step.get('type') in _READING for step in steps)
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
