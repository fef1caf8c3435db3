"""Reading XML safely."""

from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from pspexp.data.preparation.annotations.files import read_bytes
from pspexp.errors import UserError


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    A document type is refused, since only there can entities be defined: their expansion may fill the memory or read
    other files.

    Raises:
        UserError: The file cannot be read, is not valid XML, or contains a document type.
    """

    def refuse(*_: object) -> None:
        raise UserError(f"{path}: contains a DOCTYPE, which may be malicious; remove it, or export the file again")

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path), True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # others: an unknown encoding
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid XML ({error}); export it again") from error
    root: ElementTree.Element = builder.close()
    return root
