"""devices.yaml: the devices of a user by name, and how each is reached."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError

from distilledge.models.base import Value
from distilledge.models.errors import UsageError
from distilledge.pipeline.recipe_paths import near
from distilledge.pipeline.recipe_yaml import parse
from distilledge.pipeline.store import atomic_write
from distilledge.targets.base import RuntimeName
from distilledge.targets.devices import DEVICES, Device

ENVIRONMENT, USUAL = "DISTILLEDGE_DEVICES", Path("devices.yaml")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
LOCAL = "local"
"""This machine: always there, in no file."""
HEAD = "# Devices that `measure.device` of a recipe may name. `distilledge devices doctor NAME` looks at one.\n"


class SshEntry(Value):
    """How a board is reached by ssh."""

    kind: Literal["ssh"] = "ssh"
    host: str
    """As the ssh client takes it: ``user@host``, or a name of ~/.ssh/config."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    options: tuple[str, ...] = ()
    """Of ssh_config, such as ``IdentityFile=~/.ssh/board``."""
    python: str = "python3"
    """The interpreter there that has the runtime."""
    folder: str = ".cache/distilledge"
    """Where files go there, relative to its home or absolute."""

    @property
    def address(self) -> str:
        return self.host + (f":{self.port}" if self.port else "")


class AdbEntry(Value):
    """How a phone is reached by adb."""

    kind: Literal["adb"] = "adb"
    serial: str = ""
    """As ``adb devices`` lists it, or ``HOST:PORT``; empty: the only one that is attached."""
    python: str = "python3"
    """The interpreter there that has the runtime; may be words, such as ``su 0 /path/python3``."""
    folder: str = "/data/local/tmp/distilledge"
    """Where files go there."""
    native: dict[RuntimeName, tuple[str, ...]] = {}
    """For a phone without Python: the runtime's own timing program and its libraries, files of this machine."""

    @property
    def address(self) -> str:
        return self.serial or "the only one"


class BrowserEntry(Value):
    """How a page is opened in a browser."""

    kind: Literal["browser"] = "browser"
    command: str = ""
    """Words that start a browser of this machine, ``{url}`` and ``{profile}`` filled in, or only its name; empty: the
    first on PATH."""
    open: Literal["here", "manual"] = "here"
    """``manual``: the address is told, and somebody opens it, on a phone or anywhere."""
    listen: str = "127.0.0.1"
    """Address of this machine that pages reach; ``0.0.0.0``: all of them."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: any; 8765 where a page is opened by hand."""
    https: bool = False
    """With a certificate made for the run, unless one is named. Without it another device has one thread, no WebGPU."""
    certificate: str = ""
    """PEM file."""
    key: str = ""
    """PEM file; empty: in ``certificate``."""
    accelerator: Literal["wasm", "webgpu"] = "wasm"
    wait_s: Annotated[float, Field(gt=0)] | None = None
    """For a page to be opened; 60, or 600 by hand."""

    @property
    def address(self) -> str:
        return self.command or ("opened by hand" if self.open == "manual" else "the first on PATH")

    @property
    def python(self) -> str:
        """None is needed."""
        return ""

    @property
    def folder(self) -> str:
        """Nothing is kept there."""
        return ""


def kind_of(given: Any) -> str:
    """What an entry says it is; the first inventories had one kind and did not say."""
    return str(given.get("kind", "ssh") if isinstance(given, dict) else getattr(given, "kind", ""))


KINDS: dict[str, type[SshEntry | AdbEntry | BrowserEntry]] = {"ssh": SshEntry, "adb": AdbEntry, "browser": BrowserEntry}
Entry = Annotated[
    Annotated[SshEntry, Tag("ssh")] | Annotated[AdbEntry, Tag("adb")] | Annotated[BrowserEntry, Tag("browser")],
    Discriminator(kind_of),
]


class Inventory(Value):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    devices: dict[Annotated[str, Field(pattern=NAME)], Entry] = {}


def place() -> Path:
    """``DISTILLEDGE_DEVICES``, or devices.yaml in the working directory."""
    return Path(os.environ.get(ENVIRONMENT) or USUAL)


def load() -> Inventory:
    """Empty where there is no file. Raises ``UsageError`` with the line of every kind of mistake."""
    path = place()
    if not path.exists():
        return Inventory()
    document = parse(path.read_text(encoding="utf-8"), str(path))
    try:
        return Inventory.model_validate(document.data or {})
    except ValidationError as error:
        first = error.errors()[0]
        loc = first["loc"][:2] + first["loc"][2 + (first["loc"][2:3] in [(kind,) for kind in KINDS]) :]
        line, column = document.place([p for p in loc if isinstance(p, (str, int))])
        where = f"{path}:{line}:{column}"
        what = f"{'.'.join(map(str, loc))}: {first['msg']}: {where}"
        raise UsageError("E2051", what, "correct that line; docs/devices.md shows every field") from None


def save(inventory: Inventory) -> None:
    from ruamel.yaml import YAML

    devices = {
        name: {"kind": entry.kind, **entry.model_dump(mode="json", exclude_defaults=True)}
        for name, entry in inventory.devices.items()
    }
    stream = StringIO()
    YAML().dump({"schema": 1, "devices": devices}, stream)
    atomic_write(place(), HEAD + stream.getvalue())


def made(kind: str, fields: dict[str, Any]) -> Entry:
    """An entry of what was given on the command line. Raises ``UsageError`` for what such a device does not have."""
    try:
        return KINDS[kind](**fields)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"a device of kind {kind}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UsageError("E2080", what, "see: distilledge devices add --help") from None


def add(name: str, entry: Entry) -> None:
    """Raises ``UsageError`` for a name that is taken or is none."""
    inventory = load()
    if not re.match(NAME, name) or name == LOCAL or name in inventory.devices:
        what = "is not a name" if not re.match(NAME, name) else "is there already"
        raise UsageError("E2052", f"{name!r} {what}: {place()}", "choose another name, or remove that device first")
    open_entry(name, entry).close()
    save(Inventory(devices={**inventory.devices, name: entry}))


def remove(name: str) -> None:
    inventory = load()
    entry_of(name, inventory)
    save(Inventory(devices={n: e for n, e in inventory.devices.items() if n != name}))


def entry_of(name: str, inventory: Inventory) -> Entry:
    if name not in inventory.devices:
        best = near(name, [*inventory.devices, LOCAL])
        hint = f"did you mean {best}?" if best else f"distilledge devices add {name} --host USER@HOST"
        raise UsageError("E2053", f"no device {name!r} in {place()}", hint)
    return inventory.devices[name]


def open_entry(name: str, entry: Entry) -> Device:
    fields: dict[str, Any] = entry.model_dump(exclude={"kind"})
    return DEVICES[entry.kind](name, **fields)


@contextmanager
def opened(name: str) -> Iterator[Device]:
    """The device of that name; closed after."""
    device = DEVICES[LOCAL]() if name == LOCAL else open_entry(name, entry_of(name, load()))
    try:
        yield device
    finally:
        device.close()
