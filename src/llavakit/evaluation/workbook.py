"""A table as an .xlsx file: one sheet of texts and whole numbers, written by XlsxWriter."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from datetime import datetime

from llavakit.errors import MissingDependencyError, ParameterError

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_CELL_CHARACTERS = 32_767
_EXACT = 2**53  # numbers in a sheet are doubles
_CREATED = datetime(1980, 1, 1)


def workbook(rows: Sequence[Sequence[str | int]]) -> bytes:
    """Return the bytes of a workbook with one sheet; equal rows give equal bytes.

    Characters that XML cannot hold are left out, and a text ends where a cell must. Integers that
    a double cannot hold are written as text.

    Raises:
        MissingDependencyError: XlsxWriter is not installed.
        ParameterError: more rows or columns than a sheet can hold.
    """
    try:
        from xlsxwriter import Workbook
    except ImportError as error:
        raise MissingDependencyError(
            'Writing .xlsx files needs XlsxWriter; run: pip install "llavakit[eval]"'
        ) from error
    packed = io.BytesIO()
    book = Workbook(packed, {"in_memory": True})
    # A fixed date, so that a run that was killed ends with the same file.
    book.set_properties({"created": _CREATED})
    sheet = book.add_worksheet()
    for number, row in enumerate(rows):
        for column, value in enumerate(row):
            if isinstance(value, int) and abs(value) <= _EXACT:
                refused = sheet.write_number(number, column, value)
            else:  # never as a formula or a link, whatever it looks like
                text = _NOT_XML.sub("", str(value))[:_CELL_CHARACTERS]
                refused = sheet.write_string(number, column, text)
            if refused:
                raise ParameterError("The table has more rows or columns than a sheet can hold.")
    book.close()
    return packed.getvalue()
