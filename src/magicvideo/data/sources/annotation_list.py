"""Clips that a list names: what every source with a list does with its entries."""

from collections.abc import Sequence
from pathlib import Path

from magicvideo.data.manifest import Split
from magicvideo.data.sources.source import Candidate, Skipped, Source
from magicvideo.data.sources.video_index import VideoIndex, contents, is_utf8, show
from magicvideo.errors import UserError
from magicvideo.media.time_ranges import Span


def clean(caption: str) -> str:
    """Return a caption in one line, without spaces at its ends."""
    return " ".join(caption.split())


class ListedClips:
    """The clips of one source, gathered entry by entry.

    Args:
        folder: The source; videos are looked for in all of it.
        lists: What names the clips, as it is shown.
    """

    def __init__(self, folder: Path, lists: str) -> None:
        self._folder, self._lists = folder, lists
        self._videos = VideoIndex(folder)
        self._candidates: dict[str, Candidate] = {}
        self._skipped: list[Skipped] = []
        self._missing: list[str] = []

    @classmethod
    def of(cls, folder: Path, lists: Sequence[Path], wanted: str) -> "ListedClips":
        """Return the clips of a folder's lists, none of them gathered yet.

        Args:
            folder: The source.
            lists: Those that were found in it.
            wanted: What was looked for, and where.

        Raises:
            UserError: If there is no list.
        """
        if not lists:
            raise UserError(f"{folder} has no {wanted}; {contents(folder)}.")
        return cls(folder, ", ".join(path.name for path in lists))

    def offer(
        self,
        clip_id: str,
        names: Sequence[str],
        split: Split,
        captions: Sequence[str],
        *,
        where: str,
        span: Span | None = None,
        needs_caption: bool = True,
    ) -> None:
        """Take an entry in, or note why it becomes no clip.

        Args:
            clip_id: Its id, which no other entry has.
            names: What its video may be called, the likeliest first.
            split: Where it belongs.
            captions: All that are known.
            where: Its place in the list.
            span: The part of the video; None for all.
            needs_caption: Whether a clip without a caption is passed over.
        """
        path = next(filter(None, map(self._videos.find, names)), None)
        if path is None:
            self._missing.append(names[0] if is_utf8(names[0]) else ascii(names[0]))
            return
        file = show(path, self._folder)
        if span:
            file += f" from {span[0]:g} to {span[1]:g} seconds"
        texts = [text for text in map(clean, captions) if text]
        if reason := self._fault(clip_id, texts, span, where, needs_caption=needs_caption):
            self._skipped.append(Skipped(file, reason))
            return
        text, others = (texts[0], texts[1:]) if texts else (None, [])
        self._candidates[clip_id] = Candidate(
            clip_id,
            file,
            path,
            split,
            loops=False,
            text=text,
            other_texts=tuple(others),
            span=span,
        )

    def skip(self, name: str, reason: str) -> None:
        """Note an entry that cannot be used."""
        self._skipped.append(Skipped(name, reason))

    def source(self, name: str, licence: str, split_rule: str) -> Source:
        """Return all that was gathered.

        Raises:
            UserError: If the list is empty, or not one of its videos is there.
        """
        if self._missing and not self._candidates and not self._skipped:
            raise UserError(
                f"Not one of the {len(self._missing):,} clips in {self._lists} has its video in "
                f"{self._folder}; looked for {self._missing[0]} first, and "
                f"{contents(self._folder)}."
            )
        if not self._candidates and not self._skipped:
            raise UserError(f"{self._lists} in {self._folder} names no clip; fill it.")
        return Source(
            name,
            self._folder,
            licence,
            split_rule,
            list(self._candidates.values()),
            self._skipped + self._summaries(),
        )

    def _fault(
        self,
        clip_id: str,
        texts: list[str],
        span: Span | None,
        where: str,
        *,
        needs_caption: bool,
    ) -> str | None:
        if clip_id in self._candidates:
            return f"listed again in {where}, passed over"
        if span and not 0 <= span[0] < span[1]:
            return f"its start is not before its end ({where})"
        if needs_caption and not texts:
            return f"no caption ({where})"
        if not all(map(is_utf8, [clip_id, *texts])):
            return f"its caption is not UTF-8 text ({where})"
        return None

    def _summaries(self) -> list[Skipped]:
        """Return one line for all missing videos, and one for all that no entry names."""
        summaries = []
        if self._missing:
            listed = len(self._candidates) + len(self._skipped) + len(self._missing)
            reason = f"{len(self._missing):,} of {listed:,} clips have no video here"
            summaries.append(Skipped(self._lists, f"{reason} (the first: {self._missing[0]})"))
        if unasked := self._videos.unasked():
            first = show(unasked[0], self._folder)
            reason = f"{len(unasked):,} videos here are in no entry (the first: {first})"
            summaries.append(Skipped(self._lists, reason))
        return summaries
