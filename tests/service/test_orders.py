"""The order file: private, whole, and with one token however often it is written."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.orders import order_path, write_order
from workers.attempt import Order


def _order(token: str, url: str = "http://127.0.0.1:1") -> Order:
    return Order(
        job_id="j",
        job_name="job",
        kind="train",
        attempt=1,
        token=token,
        service_url=url,
        spec={},
        job_dir=Path("/jobs/j"),
        prepared_dir=Path("/prepared"),
    )


def test_only_its_user_can_read_it(tmp_path: Path) -> None:
    path = order_path(tmp_path / "j", 1)
    order = write_order(path, _order)
    assert path == tmp_path / "j" / "attempts" / "1" / "order.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Order.model_validate_json(path.read_text()) == order
    assert [each.name for each in path.parent.iterdir()] == ["order.json"]


def test_written_again_it_keeps_its_token_and_follows_the_service(tmp_path: Path) -> None:
    path = order_path(tmp_path, 1)
    first = write_order(path, _order)
    again = write_order(path, lambda token: _order(token, "http://127.0.0.1:2"))
    assert again.token == first.token
    assert Order.model_validate_json(path.read_text()).service_url == "http://127.0.0.1:2"


@pytest.mark.parametrize("left", ["", '{"job_id": "j"', "\x00" * 64])
def test_one_that_a_crash_left_torn_is_written_anew(tmp_path: Path, left: str) -> None:
    path = order_path(tmp_path, 1)
    path.parent.mkdir(parents=True)
    path.write_text(left)
    order = write_order(path, _order)
    assert order.token
    assert Order.model_validate_json(path.read_text()) == order


def test_writers_at_once_agree_on_one_token(tmp_path: Path) -> None:
    path = order_path(tmp_path, 1)
    with ThreadPoolExecutor(8) as pool:
        tokens = {order.token for order in pool.map(lambda _: write_order(path, _order), range(16))}
    assert len(tokens) == 1
