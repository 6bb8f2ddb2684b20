"""The errors a user can fix, and the exit code of each.

DistilledgeError
├── UsageError            2   command line or recipe
├── RejectedError         3   data or model rejected
├── MissingPackageError   4   environment: a package missing or mismatched
├── GateFailedError       5   a gate failed: parity, leakage, budget
├── DeviceError           6   the device
├── IntegrityError        7   hash or signature
├── LockedError           8   locked by another run
├── ResourceError         9   disk, memory or time
└── InconclusiveError    10   a measurement that decides nothing

Anything else that reaches the command line is a bug of ours (exit 1).
"""

from __future__ import annotations

from typing import ClassVar


class DistilledgeError(Exception):
    """Base of all errors that the user can fix.

    ``code`` is the stable number printed as ``error[E....]``; its first digit is the exit code (10 is written ``A``).
    ``what`` says what is wrong and where; ``hint`` is one command or one edit that fixes it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, what: str, hint: str = "") -> None:
        super().__init__(code, what, hint)
        self.code, self.what, self.hint = code, what, hint

    def __str__(self) -> str:
        return f"error[{self.code}] {self.what}" + (f"\nhint: {self.hint}" if self.hint else "")


class UsageError(DistilledgeError):
    exit_code = 2


class RejectedError(DistilledgeError):
    exit_code = 3


class MissingPackageError(DistilledgeError):
    exit_code = 4


class GateFailedError(DistilledgeError):
    exit_code = 5


class DeviceError(DistilledgeError):
    exit_code = 6


class IntegrityError(DistilledgeError):
    exit_code = 7


class LockedError(DistilledgeError):
    exit_code = 8


class ResourceError(DistilledgeError):
    exit_code = 9


class InconclusiveError(DistilledgeError):
    exit_code = 10
