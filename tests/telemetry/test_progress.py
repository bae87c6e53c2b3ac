import io
import os
import select

import pytest

from uvit_jax.telemetry.progress import Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(
    file, *, start=0, total=3000, step_seconds=0.125, compile_seconds=60.0, stop=None, **kwargs
):
    """Trains on a clock moved by hand; returns the progress and the file's text."""
    clock = Clock()
    progress = Progress(total, start=start, file=file, clock=clock, **kwargs)
    for step in range(start + 1, (stop or total) + 1):
        clock.now += compile_seconds if step == start + 1 else step_seconds
        progress.update(step, loss=0.125, images_per_sec=1234.0)
    return progress, file.getvalue()


def test_a_log_file_gets_plain_lines_at_most_every_ten_seconds():
    _, text = run(io.StringIO())  # 375 s after the compile
    lines = text.splitlines()
    assert "\r" not in text
    assert "\x1b" not in text
    assert 37 <= len(lines) <= 39
    assert lines[-1] == "train 100% 3000/3000  loss 0.1250  1,234 images/s  00:00 left"


def test_a_line_shows_percent_step_loss_rate_and_time_left():
    _, text = run(io.StringIO())
    assert text.splitlines()[1] == "train   2% 81/3000  loss 0.1250  1,234 images/s  06:04 left"


def test_time_left_does_not_count_the_compile_step():
    progress, _ = run(io.StringIO(), compile_seconds=600.0, stop=1000)
    assert progress.seconds_left() == pytest.approx(2000 * 0.125)


def test_time_left_after_a_resume_counts_this_runs_steps_only():
    progress, _ = run(io.StringIO(), start=2000, stop=2011)
    assert progress.seconds_left() == pytest.approx(989 * 0.125)


def test_time_left_is_unknown_until_two_updates_were_seen():
    progress, text = run(io.StringIO(), stop=1)
    assert progress.seconds_left() is None
    assert text == "train   0% 1/3000  loss 0.1250  1,234 images/s\n"


def test_a_terminal_gets_one_bar_with_the_numbers():
    progress, _ = run(Terminal(), total=300)
    progress.close()
    last = progress._file.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("train 100%|")
    assert "| 300/300  loss 0.1250  1,234 images/s  00:00 left" in last
    assert progress._file.getvalue().count("\n") == 1


def test_a_terminal_bar_starts_where_the_run_resumes():
    progress, text = run(Terminal(), start=150, total=300, stop=151)
    assert "50%|" in text
    progress.close()


def test_a_terminal_that_says_it_has_no_size_still_gets_a_bar(monkeypatch):
    leader, follower = os.openpty()  # 0 rows, 0 columns
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress(10) as progress:
            progress.update(5, loss=0.5)
        shown = b""
        while select.select([leader], [], [], 1.0)[0]:  # a terminal hands over one write at a time
            shown += os.read(leader, 4096)
        assert b"train  50%|" in shown
    os.close(leader)


def test_a_loss_not_given_stays_the_last_one_known():
    clock, file = Clock(), io.StringIO()
    progress = Progress(100, file=file, clock=clock)
    progress.update(1, loss=0.5)
    clock.now += 20
    progress.update(2)
    assert "loss 0.5000" in file.getvalue().splitlines()[-1]


def test_a_note_stays_until_another_takes_its_place():
    clock, file = Clock(), io.StringIO()
    progress = Progress(100, file=file, clock=clock)
    for step, note in ((1, "waiting 34 % for data"), (2, None), (3, "")):
        clock.now += 20
        progress.update(step, loss=0.5, note=note)
    first, second, third = file.getvalue().splitlines()
    assert first == "train   1% 1/100  loss 0.5000  waiting 34 % for data"
    assert "waiting 34 % for data" in second
    assert "waiting" not in third


def test_numbers_that_come_late_turn_nothing_back():
    clock, file = Clock(), io.StringIO()
    progress = Progress(100, file=file, clock=clock)
    progress.update(8)
    clock.now += 20
    progress.update(5, loss=0.5, images_per_sec=200.0)
    assert file.getvalue().splitlines()[-1] == "train   8% 8/100"
    progress.update(9)
    assert (
        file.getvalue().splitlines()[-1].startswith("train   9% 9/100  loss 0.5000  200 images/s")
    )


def test_a_job_stopped_early_shows_its_last_step_on_closing():
    with run(io.StringIO(), stop=57)[0] as progress:
        file = progress._file
    progress.close()
    assert file.getvalue().splitlines()[-1].startswith("train   1% 57/3000")
    assert file.getvalue().count("57/3000") == 1


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_an_inactive_progress_shows_nothing(file):
    progress, text = run(file, active=False, total=50)
    progress.write("a message")
    progress.close()
    assert text == file.getvalue() == ""


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_a_message_gets_a_line_of_its_own(file):
    with Progress(10, file=file) as progress:
        progress.update(1)
        progress.write("saved samples/step_1.png")
    assert "saved samples/step_1.png" in file.getvalue().replace("\r", "\n").split("\n")


def test_a_start_beyond_the_total_is_refused():
    with pytest.raises(ValueError, match=r"start is 11, expected 0\.\.10"):
        Progress(10, start=11)
