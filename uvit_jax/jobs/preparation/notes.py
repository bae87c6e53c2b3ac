"""Notes beside the shards (`.prepare/`), from which a killed `prepare` is resumed."""

import dataclasses
import json
import pathlib
from typing import Any

from uvit_jax.data.prepared.manifest import FILE_NAME as MANIFEST
from uvit_jax.data.prepared.shard import Shard
from uvit_jax.data.prepared.statistics import ChannelSums
from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write
from uvit_jax.jobs.preparation.plan import Plan

_FOLDER, _PLAN = ".prepare", "plan.json"
# Plans of earlier versions lack these fields; the defaults are what those versions did.
_LATER_FIELDS = {
    field.name: field.default
    for field in dataclasses.fields(Plan)
    if field.default is not dataclasses.MISSING
}
# Fields of the plan whose names don't say what is hashed.
_HASHED = {
    "listing_sha256": " (of the source's file names, labels, captions and class names)",
    "tokenizer_sha256": " (of config.text_encoder.tokenizer's tokens)",
}


@dataclasses.dataclass(frozen=True)
class FinishedShard:
    """The facts of one finished shard that the manifest needs.

    Attributes:
      shard: its entry in the manifest.
      sums: of its arrays' channels; None for a shard without one readable image.
      max_label: the highest label; -1 for none.
      skipped: errors of the images left out.
    """

    shard: Shard
    sums: ChannelSums | None
    max_label: int
    skipped: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Notes:
    """The notes on one folder of shards: its plan, and a file for each finished shard.

    Attributes:
      out: the folder of the shards.
    """

    out: pathlib.Path

    def missing(self, plan: Plan, shards: list[str]) -> list[str]:
        """The files that this plan still has to make, the manifest last.

        Raises:
          UserError: where the folder was begun with another plan.
        """
        self._begin(_as_json(plan))
        files = [name for name in shards if not self.is_finished(name)]
        return files if (self.out / MANIFEST).exists() else [*files, MANIFEST]

    def check_not_replaced(self, plan: Plan) -> None:
        """Refuses to go on where another job has noted a plan of its own.

        That takes two jobs that both began before any shard was there.

        Raises:
          UserError: naming the first field that differs.
        """
        found, own = _read_json(self._path(_PLAN)), _as_json(plan)
        for field in _differing(found, own):
            raise UserError(
                f"another prepare has begun {self.out} with {field} = {found[field]!r}, while this "
                f"one has {own[field]!r}: expected one at a time, or another config.prepare.out"
            )

    def is_finished(self, name: str) -> bool:
        """True if the shard and its note are there; the note is written last."""
        if not self._path(f"{name}.json").exists():
            return False
        return all(
            (self.out / file.name).exists()
            and (self.out / file.name).stat().st_size == file.num_bytes
            for file in self.finished(name).shard.files
        )

    def finished(self, name: str) -> FinishedShard:
        """The note on a finished shard.

        Raises:
          UserError: for a note that can't be read.
        """
        values = _read_json(self._path(f"{name}.json"))
        sums = values["sums"]
        if sums is not None:
            sums = ChannelSums(sums["count"], tuple(sums["total"]), tuple(sums["squares"]))
        return FinishedShard(
            Shard(**values["shard"]), sums, values["max_label"], tuple(values["skipped"])
        )

    def finish(self, name: str, finished: FinishedShard) -> None:
        """Notes that a shard is finished."""
        _write_json(self._path(f"{name}.json"), dataclasses.asdict(finished))

    def remove_temporary_files(self) -> None:
        """Removes what killed runs were writing; to be called once every host is done."""
        for folder in (self.out, self.out / _FOLDER):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def _begin(self, plan: dict[str, Any]) -> None:
        """Notes the plan; once a shard is finished, compares it with the noted one."""
        path, is_made = self._path(_PLAN), (self.out / MANIFEST).exists()
        if not is_made and not any(self.out.glob("*.array_record")):
            # A run that failed before its first shard, or whose shards were deleted, binds nothing.
            for note in (self.out / _FOLDER).glob("*.array_record.json"):
                note.unlink()
            _write_json(path, plan)
            return
        if not path.exists():
            if is_made:
                raise UserError(
                    f"config.prepare.out is {str(self.out)!r}, which holds a data set made "
                    "elsewhere: expected a new folder"
                )
            _write_json(path, plan)
            return
        found = _LATER_FIELDS | _read_json(path)
        for field in plan:
            if field not in found and not is_made:
                raise UserError(
                    f"{path} is an earlier version's, without {field}: expected another "
                    "config.prepare.out, or, where source and settings are the same as when it was "
                    "begun, that file deleted"
                )
        for field in _differing(found, plan):
            raise UserError(
                f"{self.out} was begun with {field} = {found[field]!r}, but it is {plan[field]!r} "
                f"now{_HASHED.get(field, '')}: expected the same settings, or another "
                "config.prepare.out"
            )

    def _path(self, name: str) -> pathlib.Path:
        return self.out / _FOLDER / name


def _differing(found: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """The fields by which two plans would store other things.

    Names are compared by their hashes where there are any: the same weights may have two names.
    """
    hashed = [field for field in plan if plan.get(f"{field}_sha256")]
    return [
        field
        for field in plan
        if field in found and found[field] != plan[field] and field not in hashed
    ]


def _as_json(plan: Plan) -> dict[str, Any]:
    """The plan as a JSON file gives it back: its tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(plan)))


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError):
        raise UserError(
            f"{path} can't be read: delete it, and the same command makes its shard again"
        ) from None
