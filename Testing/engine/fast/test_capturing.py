"""A graph is captured only while no other thread compiles or gives memory back."""

from __future__ import annotations

import threading

from segmamba.fast.accelerate import _Capturing


def test_a_capture_and_what_cuda_forbids_meanwhile_wait_for_each_other() -> None:
    capturing, happened = _Capturing(), []
    prepared, captured = threading.Event(), threading.Event()
    at_work = threading.Barrier(3, timeout=30)

    def prepare(name: str) -> None:
        with capturing.excluded():
            at_work.wait()  # both at once
            with capturing.excluded():
                prepared.wait(30)
            happened.append(name)

    def capture() -> None:
        with capturing.capture():
            happened.append("capture")
            late.start()
            captured.wait(0.2)
            happened.append("captured")

    def give_back() -> None:
        with capturing.excluded():
            happened.append("late")

    late = threading.Thread(target=give_back)
    threads = [threading.Thread(target=prepare, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    at_work.wait()
    threads.append(threading.Thread(target=capture))
    threads[-1].start()
    assert happened == []
    prepared.set()
    for thread in threads:
        thread.join(30)
    late.join(30)
    assert sorted(happened[:2]) == ["one", "other"]
    assert happened[2:] == ["capture", "captured", "late"]
