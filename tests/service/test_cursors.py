"""Page cursors are opaque, and nothing but what was given out is taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cursors import InvalidCursor, decode, encode


@given(st.text(max_size=20), st.integers(0, 2**63 - 1))
def test_a_cursor_comes_back_as_the_key_it_was_made_of(listing: str, key: int) -> None:
    assert decode(listing, encode(listing, key)) == key


@given(st.text())
def test_any_other_text_is_refused_as_invalid(text: str) -> None:
    with pytest.raises(InvalidCursor) as refused:
        decode("jobs", text)
    assert refused.value.status == 422


@pytest.mark.parametrize("key", [-1, 2**63, True])
def test_a_key_that_no_row_has_is_refused(key: int) -> None:
    with pytest.raises(InvalidCursor):
        decode("jobs", encode("jobs", key))
