"""A GGUF model in several files, joined into one: transformers reads one file alone.

`gguf-split` (llama.cpp) numbers its parts and writes the count into each; every part is a GGUF file of its own, and the
first has the metadata. Others cut the bytes of one file, so that a package index takes the pieces: only the first
begins like a GGUF file. Both are joined in the order given.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneline.errors import SourceError

MAGIC = b"GGUF"


def join_parts(parts: Sequence[Path], target: Path) -> Path:
    """Write one GGUF file from its parts.

    Args:
        parts: All of them, in order.
        target: The file to write.

    Raises:
        SourceError: The parts are not those of one file, or not in order.
    """
    begin = [_has_magic(part) for part in parts]
    if all(begin):
        _join_split(parts, target)
    elif begin[0] and not any(begin[1:]):
        _append(parts, target)
    else:
        odd = next(part for part, gguf in zip(parts, begin, strict=True) if not gguf)
        raise SourceError(
            f"model: {odd.name} is no GGUF file, and other parts are. Give the parts that `gguf-split` wrote, or the "
            "pieces of one file in order."
        )
    return target


def check_not_split(file: Path) -> None:
    """Refuse a file that is one part of several.

    Raises:
        SourceError: It is, and its name does not tell where the others are.
    """
    from gguf import Keys

    number, count = (_value(_reader(file), key) for key in (Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT))
    if count and count > 1:
        raise SourceError(
            f"model: {file.name} is part {int(number or 0) + 1} of {count}. Keep the names that `gguf-split` gave "
            f"(NAME-00001-of-{count:05}.gguf) with all parts in one folder, or list those of wheels in model.parts."
        )


def _has_magic(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def _append(parts: Sequence[Path], target: Path) -> None:
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, joined, 2**24)


def _join_split(parts: Sequence[Path], target: Path) -> None:
    """Copy the metadata of the first part and the tensors of all; a tensor at a time is in memory."""
    from gguf import GGUFWriter, Keys

    readers = [_reader(part) for part in parts]
    _check_numbers(parts, readers)
    writer = GGUFWriter(str(target), _value(readers[0], Keys.General.ARCHITECTURE), endianess=readers[0].endianess)
    writer.data_alignment = readers[0].alignment
    for field in _metadata(readers[0]):
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _metadata(reader: Any) -> Iterator[Any]:
    """Yield what the joined file says of itself: all but its head, and what only a part says."""
    from gguf import Keys

    for name, field in reader.fields.items():
        if name != Keys.General.ARCHITECTURE and not name.startswith(("GGUF.", "split.")):
            yield field


def _check_numbers(parts: Sequence[Path], readers: Sequence[Any]) -> None:
    """Compare what each part says of its place with where it stands."""
    from gguf import Keys

    for place, (part, reader) in enumerate(zip(parts, readers, strict=True)):
        number, count = (_value(reader, key) for key in (Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT))
        if (number, count) != (place, len(parts)):
            says = "says of no split" if count is None else f"is part {int(number) + 1} of {count}"
            raise SourceError(
                f"model: {part.name} stands as part {place + 1} of {len(parts)} and {says}. Give all parts of one "
                "model, in order."
            )
    told, found = _value(readers[0], Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT), sum(len(each.tensors) for each in readers)
    if told is not None and told != found:
        raise SourceError(
            f"model: {parts[0].name} tells of {told} tensors, and the parts have {found}. Fetch them again."
        )


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError) as error:
        raise SourceError(f"model: {file} cannot be read as a GGUF file: {error}. Fetch it again.") from error


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
