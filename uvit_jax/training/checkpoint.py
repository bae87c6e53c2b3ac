"""Checkpoints on disk: written in the background, complete or absent, restored onto any mesh."""

import contextlib
import json
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from uvit_jax.errors import UserError, check_format
from uvit_jax.parallel import hosts
from uvit_jax.parallel.arrays import place
from uvit_jax.parallel.sharding import path_name
from uvit_jax.training.state import Params, TrainState

# (first step, rate), ascending: the rate of the EMA from the step after the first on, until that of
# the next pair.
Rates = tuple[tuple[int, float | int], ...]

FORMAT_VERSION = 1  # of a step's folder, in its item `data`; those without one are of version 1
_DATA_FILE = "metadata"  # Orbax's own name
_SECONDS_TO_REMOVE = 3.0  # a checkpoint's files, one after another


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]  # orbax has no types
    # Overridden because the loop asks JAX itself. Orbax would ask again in its own thread, when a
    # save ends, with the step of the save; JAX keeps the last step asked for, so this process would
    # fall back behind the others. Goes once an option of orbax turns its own question off.
    def reached_preemption(self, step: int) -> bool:
        """Returns False."""
        return False


class _Removed(UserError):
    """A checkpoint that was there and no longer is."""


class Checkpoints:
    """The checkpoints of a workdir, one folder a step.

    Each holds the items `params`, `ema`, `optimizer` and `data`. Nothing in them depends on the
    mesh or on the number of hosts. All processes of a run call each method at the same point, on a
    folder that all of them see; each writes the arrays of its own devices, and the first one what
    is equal on all.

    A save copies the state off the devices and returns; files are written beside their final place
    and renamed when complete, so a process killed at any moment leaves the last complete checkpoint
    the newest. The last `keep_last` are kept, and every one whose step is a multiple of
    `keep_every` (0: none more); so is that of step 0.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        read_only: bool = False,
    ):
        self.directory = directory
        self._manager = _Manager(
            directory.absolute(),
            item_handlers={
                **{
                    item: ocp.StandardCheckpointHandler() for item in ("params", "ema", "optimizer")
                },
                "data": ocp.JsonCheckpointHandler(_DATA_FILE),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last,
                keep_period=keep_every or None,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        step: int | None = self._manager.latest_step()
        return step

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of all complete checkpoints, ascending."""
        return tuple(sorted(self._manager.all_steps()))

    def find_step(self, step: int | None = None) -> int:
        """The step itself, or the newest for None.

        Raises:
          UserError: if there is no such checkpoint.
        """
        if not self.steps:
            raise UserError(
                f"{self.directory} holds no checkpoint: train first, or name the workdir of a "
                f"trained model"
            )
        if step is not None and step not in self.steps:
            raise UserError(
                f"{self.directory} holds no step {step}, expected one of "
                f"{', '.join(map(str, self.steps))}"
            )
        return self.steps[-1] if step is None else step

    def await_step(self, step: int, *, seconds: float = 60.0) -> None:
        """Waits until this process sees a step that another process has seen.

        A listing of a shared folder may be stale.

        Raises:
          UserError: if it is not there after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while step not in self.steps:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.directory} holds no step {step} on {socket.gethostname()}, which "
                    "another host of the run sees, expected a folder on a file system that all "
                    "hosts share"
                )
            time.sleep(0.2)
            self._reload()

    def save(
        self, state: TrainState, iterator: grain.DatasetIterator, ema_rates: Rates = ()
    ) -> None:
        """Starts writing the state and the data iterator's position, once an earlier save ended.

        ema_rates: rates of the EMA until now, as `ema_rates` returns them.
        """
        data = {
            "format_version": FORMAT_VERSION,
            **iterator.get_state(),
            "ema_rates": ema_rates,
        }
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                ema=ocp.args.StandardSave(state.ema),
                optimizer=ocp.args.StandardSave(state.opt_state),
                data=ocp.args.JsonSave(data),
            ),
        )

    def ema_rates(self, step: int) -> Rates:
        """The rates that the EMA of a step has had; empty for an older format that lacks them.

        A process may call this by itself.

        Raises:
          UserError: if they can't be read.
        """
        rates = self._data(step).get("ema_rates", ())
        return tuple((int(first), float(rate)) for first, rate in rates)

    def restore(
        self,
        abstract: TrainState,
        iterator: grain.DatasetIterator,
        step: int | None = None,
        *,
        batch_size: int | None = None,
    ) -> TrainState:
        """The state of a step (default: the newest), with the shardings of `abstract`.

        Also sets the iterator to its position at that step. batch_size: the run's until now
        (default: the iterator's), the unit of position in older checkpoints.

        Raises:
          UserError: if the checkpoint's arrays, or its optimizer's, are not those of `abstract`.
        """
        step = self.find_step(step)
        self._check(step, "params", abstract.params)
        self._check(step, "optimizer", abstract.opt_state)
        items = self._read(
            step,
            ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                ema=ocp.args.StandardRestore(abstract.ema),
                optimizer=ocp.args.StandardRestore(abstract.opt_state),
                data=ocp.args.JsonRestore(),
            ),
        )
        iterator.set_state(
            items.data if batch_size is None else {"batch_size": batch_size, **items.data}
        )
        step_array = place(np.asarray(step, np.int32), abstract.step.sharding)
        return TrainState(
            step=step_array, params=items.params, ema=items.ema, opt_state=items.optimizer
        )

    def restore_weights(
        self, abstract: Params, *, weights: str, step: int | None = None
    ) -> tuple[Params, int]:
        """One set of weights, "params" or "ema", of a step (default: the newest), and that step.

        Where a run that trains at the same time removes the newest one during the read, the read
        starts again with a newer one.

        Raises:
          UserError: if there is no such checkpoint or its arrays are not those of `abstract`.
        """
        found = self.find_step(step)
        try:
            self._check(found, weights, abstract)
            items = self._read(
                found, ocp.args.Composite(**{weights: ocp.args.StandardRestore(abstract)})
            )
        except _Removed:
            # Several hosts would each find out for themselves, and read different steps.
            if step is not None or hosts.are_several() or self.find_step() <= found:
                raise
            return self.restore_weights(abstract, weights=weights)
        return items[weights], found

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()

    def _read(self, step: int, args: ocp.args.Composite) -> Any:
        with self._naming_damage(step):
            return self._manager.restore(step, args=args)

    @contextlib.contextmanager
    def _naming_damage(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Orbax raises a bare Exception for arrays that TensorStore can't read; its subclasses
            # are other faults.
            if type(error) is not Exception and not isinstance(
                error, ValueError | KeyError | OSError
            ):
                raise
            words = " ".join(str(error).split()).partition(". See full TensorStore details")[0]
            raise self._unreadable(step, words[:150]) from error

    def _unreadable(self, step: int, fault: str) -> UserError:
        """The error for a checkpoint with this fault: it was removed, or else it is damaged."""
        if self._is_removed(step):
            return _Removed(
                f"{self.directory / str(step)} was removed while it was read, by a run that trains "
                "there and keeps its newest checkpoints alone (config.train.keep_last): expected "
                "another step, or -1 for the newest"
            )
        return UserError(
            f"{self.directory / str(step)} is damaged ({fault}): delete that folder to go on from "
            f"the one before"
        )

    def _is_removed(self, step: int) -> bool:
        """True if a checkpoint that can't be read is gone, or soon goes in favour of newer ones."""
        deadline = time.monotonic() + _SECONDS_TO_REMOVE
        while (self.directory / str(step)).exists():
            self._reload()
            if time.monotonic() > deadline or all(other <= step for other in self.steps):
                return False
            time.sleep(0.05)
        self._reload()
        return True

    def _reload(self) -> None:
        """Lists the steps on disk again, anew where one is removed while orbax looks at it."""
        deadline = time.monotonic() + _SECONDS_TO_REMOVE
        while True:
            try:
                self._manager.reload()
                return
            except FileNotFoundError:
                if time.monotonic() > deadline:
                    raise

    def _data(self, step: int) -> dict[str, Any]:
        """Reads a step's item `data`; raises a UserError for a checkpoint of a newer version."""
        folder = self.directory / str(step)
        with self._naming_damage(step):
            data: dict[str, Any] = json.loads((folder / "data" / _DATA_FILE).read_text())
        check_format(folder, data.get("format_version", 1), FORMAT_VERSION)
        return data

    def _check(self, step: int, item: str, abstract: Any) -> None:
        """Compares version, names and shapes on disk with those wanted, before the rest is read."""
        self._data(step)
        with self._naming_damage(step):
            found = _shapes(self._manager.item_metadata(step)[item])
        if not found:
            raise self._unreadable(step, f"it holds no {item}")
        expected = _shapes(abstract)
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                fault, advice = "is of another architecture", ""
                if item == "optimizer":
                    fault = "holds an optimizer's state of another structure"
                    advice = ": a new run can start from its weights with config.init_from"
                raise UserError(
                    f"{self.directory / str(step)} {fault}: {name} has shape "
                    f"{found.get(name, 'none (it is absent)')}, the config's has "
                    f"{expected.get(name, 'none')}{advice}"
                )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        path_name(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
