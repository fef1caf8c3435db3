"""Settings that would give every value in the label files a meaning."""

from collections.abc import Iterable, Mapping, Sequence

from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.label_values import Value, distance, show_value, voc_colour
from pspexp.data.labels import VOID
from pspexp.errors import setting

SCATTER = 8  # how far values in lossy files usually are from the true one
MAX_LISTED = 64  # values in a suggestion
RARE = 0.05  # share of pixels of values that may be void


def suggest(values: Mapping[Value, int], class_names: Sequence[str], decoder: LabelDecoder) -> list[str]:
    """Overrides that give the values in label files a meaning, the most likely first.

    Args:
        values: Number of pixels of each value, as the decoder reads it.
        class_names: The configured names of the classes.
        decoder: What the values mean now.

    Returns:
        Text to add to the command; empty if every value has a likely meaning, or if nothing is likely.
    """
    numbers: dict[Value, int] = {value: count for value, count in values.items() if isinstance(value, int)}
    colours: dict[Value, int] = {value: count for value, count in values.items() if not isinstance(value, int)}
    found = _numbers(numbers, class_names, decoder) if numbers else []
    return list(dict.fromkeys([*found, *(_colours(colours, len(class_names), decoder) if colours else [])]))


def is_object_void(values: Mapping[Value, int], decoder: LabelDecoder) -> bool:
    """Whether the labels are black and white, 0 and 255, and white is ignored."""
    return set(values) == {0, VOID} and VOID in decoder.ignored and any(0 in one for one in decoder.classes)


def _numbers(values: Mapping[Value, int], class_names: Sequence[str], decoder: LabelDecoder) -> list[str]:
    num_classes = len(class_names)
    if is_object_void(values, decoder):
        names = "" if num_classes == 2 else f"{setting('dataset.class_names')}=[background,object] "
        return [names + _list("label_values", [0, VOID])]
    classes = {value for entry in decoder.classes for value in entry if isinstance(value, int)}
    void = {value for value in decoder.ignored if isinstance(value, int)}
    used = sorted(value for value in values if isinstance(value, int))
    unknown = [value for value in used if value not in classes | void and not _is_near(value, classes | void, decoder)]
    if not unknown:
        return []
    if (lossy := _lossy(values, num_classes, decoder)) and len(used) > num_classes + 1:
        return [lossy]
    plain = [value for value in used if value not in void]
    found = []
    if plain[-1] == num_classes and plain[0] <= 1:
        if plain[0] == 0:
            if "background" not in class_names:
                found.append(f"{setting('dataset.class_names')}=[background,{','.join(class_names)}]")
            found.append(setting("dataset.reduce_zero_label", True))
        else:
            found.append(_list("label_values", range(1, num_classes + 1)))
    elif len(plain) == num_classes:
        found.append(_list("label_values", plain))
    elif len(used) == num_classes and void & {*used} == {VOID}:
        found.append(_list("label_values", used))
    return [*found, *_ignoring(unknown, decoder)]


def _colours(values: Mapping[Value, int], num_classes: int, decoder: LabelDecoder) -> list[str]:
    flat = [value for entry in [*decoder.classes, decoder.ignored] for value in entry]
    known: set[Value] = {value for value in flat if not isinstance(value, int)}
    has_colours = bool(known)
    if decoder.voc_colours:
        known = {voc_colour(value) for value in flat if isinstance(value, int) and value < 256}
    unknown = [value for value in values if value not in known and not _is_near(value, known, decoder)]
    if not unknown:
        return []
    if (lossy := _lossy(values, num_classes, decoder)) and len(values) > num_classes + 1:
        return [lossy]
    ordered = sorted(values, key=lambda value: -values[value])
    found = []
    if len(ordered) <= num_classes and not (has_colours and len(unknown) < len(values)):
        found.append(_list("label_values", ordered))
    elif len(ordered) == num_classes + 1 and values[ordered[-1]] < RARE * sum(values.values()) and not has_colours:
        void = [value for value in decoder.ignored if isinstance(value, int)]
        found.append(f"{_list('label_values', ordered[:-1])} {_list('ignore_values', [*void, ordered[-1]])}")
    elif not has_colours and len(ordered) <= MAX_LISTED:
        found.append(_list("label_values", ordered))
    return [*found, *(_ignoring(unknown, decoder) if len(unknown) < len(values) else [])]


def _is_near(value: Value, declared: Iterable[Value], decoder: LabelDecoder) -> bool:
    return bool(decoder.tolerance) and any(distance(value, one) <= decoder.tolerance for one in declared)


def _ignoring(unknown: Sequence[Value], decoder: LabelDecoder) -> list[str]:
    """To ignore values that have no meaning, if they are few."""
    return [_list("ignore_values", [*decoder.ignored, *unknown])] if len(unknown) <= 8 else []


def _lossy(values: Mapping[Value, int], num_classes: int, decoder: LabelDecoder) -> str | None:
    """How to read values that scatter around few true ones, as after JPEG compression; None if they do not."""
    is_number = isinstance(next(iter(values)), int)
    entries = [[value for value in entry if isinstance(value, int) == is_number] for entry in decoder.classes]
    ignored = [value for value in decoder.ignored if isinstance(value, int) == is_number]
    if decoder.voc_colours and not is_number:
        entries = [[voc_colour(value) for value in entry if isinstance(value, int)] for entry in decoder.classes]
    centres = [value for entry in entries for value in entry]
    tolerance = _tolerance([*centres, *ignored], values)
    if tolerance is not None:
        text = setting("dataset.label_tolerance", tolerance)
        needed = decoder.voc_colours and not is_number  # the numbers that stand for these colours are only 1 apart
        return f"{_list('label_values', centres)} {text}" if needed else text
    centres = _centres(values, num_classes)
    tolerance = _tolerance(centres, values) if len(centres) == num_classes else None
    if tolerance is None:
        return None
    numbers = sorted(value for value in centres if isinstance(value, int))
    return f"{_list('label_values', numbers or centres)} {setting('dataset.label_tolerance', tolerance)}"


def _centres(values: Mapping[Value, int], count: int) -> list[Value]:
    """The most frequent values that are too far apart to stand for one."""
    found: list[Value] = []
    for value in sorted(values, key=lambda one: -values[one]):
        if all(distance(value, other) > 2 * SCATTER for other in found):
            found.append(value)
        if len(found) == count:
            break
    return found


def _tolerance(centres: Sequence[Value], values: Iterable[Value]) -> int | None:
    """The smallest tolerance that gives each value one of the meanings; None if there is none."""
    if len(centres) < 2:
        return None
    gap = min(distance(one, other) for index, one in enumerate(centres) for other in centres[:index])
    needed = max(min(distance(value, centre) for centre in centres) for value in values)
    return needed if 0 < needed <= (gap - 1) // 2 else None


def _list(key: str, values: Iterable[Value]) -> str:
    """``dataset.label_values=[0,255]``; with colours in double quotes, for the shell."""
    shown = [show_value(value) for value in values]
    name = {"label_values": setting("dataset.label_values"), "ignore_values": setting("dataset.ignore_values")}[key]
    text = f"{name}=[{','.join(shown)}]"
    return f'"{text}"' if "'" in text else text
