"""Reading headers of DICOM files: in threads, whose warnings are the process's."""

from __future__ import annotations

import warnings

from kidseg.errors import KidsegWarning
from kidseg.io.dicom_header import quiet


def test_threads_that_read_leave_the_filters_of_warnings_as_they_were() -> None:
    """One enters before another, and leaves before it; a warning of kidseg is heard meanwhile."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        first, second = quiet(), quiet()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        warnings.warn("heard", KidsegWarning, stacklevel=1)
        warnings.warn_explicit(
            "not heard", UserWarning, "valuerep.py", 1, module="pydicom.valuerep"
        )
        second.__exit__(None, None, None)
        assert list(warnings.filters) == before
        warnings.warn_explicit("heard again", UserWarning, "x.py", 1, module="pydicom.valuerep")
    assert [str(each.message) for each in heard] == ["heard", "heard again"]
