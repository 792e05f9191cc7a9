"""What happens to a batch on the device, before the network."""

from .on_device_augmentation import OnDeviceAugmentation

__all__ = ['OnDeviceAugmentation']
