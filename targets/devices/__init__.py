"""Where models are measured: a device receives files and runs the worker of ``ondevice``."""

from collections.abc import Callable

from distilledge.targets.devices.base import Device
from distilledge.targets.devices.local import LocalDevice

DEVICES: dict[str, Callable[[], Device]] = {"local": LocalDevice}
