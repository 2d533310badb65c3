"""Wrong input and the code that it must be refused with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perennial.errors import InputError


@contextmanager
def refused(code: str, field: str | None = None) -> Iterator[pytest.ExceptionInfo[InputError]]:
    """Expect an InputError with this code, and with this field where one is given."""
    with pytest.raises(InputError) as caught:
        yield caught
    assert caught.value.code == code
    if field is not None:
        assert caught.value.field == field
