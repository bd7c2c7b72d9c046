"""Join a GGUF model in several files into one: transformers reads single files only.

`gguf-split` (llama.cpp) numbers its parts and writes the count into each; every part is a complete GGUF file, and the
first has the metadata. Other tools cut the bytes of one file to fit the size limits of a package index; then only the
first piece starts with the GGUF magic number. Both kinds are joined in the given order.
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
        parts: All parts, in order.
        target: The file to write.

    Raises:
        SourceError: The parts do not belong to one file, or are not in order.
    """
    has_magic = [_has_magic(part) for part in parts]
    if all(has_magic):
        _join_split(parts, target)
    elif has_magic[0] and not any(has_magic[1:]):
        _append(parts, target)
    else:
        invalid = next(part for part, is_gguf in zip(parts, has_magic, strict=True) if not is_gguf)
        raise SourceError(
            f"model: {invalid.name} is not a GGUF file, but other parts are. Give the parts written by `gguf-split`, "
            "or the pieces of one file, in order."
        )
    return target


def check_not_split(file: Path) -> None:
    """Reject a single part of a split file.

    Raises:
        SourceError: The file is a part, and its name does not identify the other parts.
    """
    from gguf import Keys

    number, count = (_value(_reader(file), key) for key in (Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT))
    if count and count > 1:
        raise SourceError(
            f"model: {file.name} is part {int(number or 0) + 1} of {count}. Keep the file names of `gguf-split` "
            f"(NAME-00001-of-{count:05}.gguf) with all parts in one folder, or list parts in wheels in model.parts."
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
    """Copy the metadata of the first part and the tensors of all parts, one tensor at a time."""
    from gguf import GGUFWriter, Keys

    readers = [_reader(part) for part in parts]
    _check_numbers(parts, readers)
    writer = GGUFWriter(str(target), _value(readers[0], Keys.General.ARCHITECTURE), endianess=readers[0].endianess)
    writer.data_alignment = readers[0].alignment
    for field in _metadata(readers[0]):
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
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
    """Yield the metadata fields of the joined file: all except the header and the split fields."""
    from gguf import Keys

    for name, field in reader.fields.items():
        if name != Keys.General.ARCHITECTURE and not name.startswith(("GGUF.", "split.")):
            yield field


def _check_numbers(parts: Sequence[Path], readers: Sequence[Any]) -> None:
    """Compare the number in each part with its position."""
    from gguf import Keys

    for position, (part, reader) in enumerate(zip(parts, readers, strict=True)):
        number, count = (_value(reader, key) for key in (Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT))
        if (number, count) != (position, len(parts)):
            actual = "is not a split file" if count is None else f"is part {int(number) + 1} of {count}"
            raise SourceError(
                f"model: {part.name} is given as part {position + 1} of {len(parts)}, but {actual}. Give all parts of "
                "one model, in order."
            )
    expected = _value(readers[0], Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT)
    num_tensors = sum(len(reader.tensors) for reader in readers)
    if expected is not None and expected != num_tensors:
        raise SourceError(
            f"model: {parts[0].name} declares {expected} tensors, but the parts have {num_tensors}. Download them "
            "again."
        )


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError) as error:
        raise SourceError(f"model: {file} cannot be read as a GGUF file: {error}. Download it again.") from error


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
