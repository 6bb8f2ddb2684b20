"""Where models are measured: a device receives files and runs the worker of ``ondevice``."""

from collections.abc import Callable

from distilledge.targets.devices.adb import AdbDevice
from distilledge.targets.devices.base import Device
from distilledge.targets.devices.browser import BrowserDevice
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.devices.ssh import SshDevice

__all__ = ["DEVICES", "Device"]

DEVICES: dict[str, Callable[..., Device]] = {
    "local": LocalDevice,
    "ssh": SshDevice,
    "adb": AdbDevice,
    "browser": BrowserDevice,
}
"""The seam to a place where a model runs: it receives files and runs the worker. By kind; arguments are the kind's."""
