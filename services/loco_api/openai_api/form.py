"""The form of an upload (multipart/form-data) read piece by piece: its file is never whole in memory."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from loco.contracts.errors import InvalidRequest

#: Parts beside the file, and characters of each: `purpose` and what clients may add.
_MOST_FIELDS, _LONGEST_FIELD = 16, 1024
#: Bytes of a body outside the file: heads, boundaries and those parts.
_MOST_OUTSIDE = 65_536
#: The part that holds the file.
_FILE = "file"


class UploadForm:
    """What has come of a form.

    Attributes:
        fields: the texts of its other parts, by name.
        filename: of the file; none: it has not begun.
    """

    def __init__(self, content_type: str) -> None:
        """A form that begins.

        Raises:
            InvalidRequest: it is no multipart/form-data.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise _no_form("its Content-Type is not multipart/form-data with a boundary")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._parts = self._outside = 0
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value = b"", b""
        self._name: str | None = None
        self._text = b""
        self._pieces: list[bytes] = []
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, piece: bytes) -> bytes:
        """The bytes of the file in a piece of the body.

        Raises:
            InvalidRequest: it is no such form, or has more parts than it may.
        """
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _no_form(str(error)) from error
        found, self._pieces = b"".join(self._pieces), []
        self._outside += len(piece) - len(found)
        if self._outside > _MOST_OUTSIDE:
            raise _no_form(f"it has more than {_MOST_OUTSIDE:,} bytes besides the file")
        return found

    def finish(self) -> None:
        """Says that the body has ended.

        Raises:
            InvalidRequest: in the middle of the form, or it has no file.
        """
        if not self._ended:
            raise _no_form("it ends in the middle")
        if self.filename is None:
            raise InvalidRequest("file: is missing.", param="file", hint="Add it to the form.")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_FIELDS + 1:
            raise _no_form(f"it has more than {_MOST_FIELDS} parts besides the file")
        self._headers, self._name, self._text = {}, None, b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == _FILE:
            if self.filename is not None:
                raise _no_form("it has two files")
            self.filename = options.get(b"filename", b"").decode(errors="replace")
        elif len(self._name) > _LONGEST_FIELD:
            raise _no_form(f"the name of a part has more than {_LONGEST_FIELD} bytes")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == _FILE:
            self._pieces.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _LONGEST_FIELD:
            raise InvalidRequest(
                f"{self._name}: has more than {_LONGEST_FIELD} bytes.", param=self._name
            )

    def _on_part_end(self) -> None:
        if self._name is not None and self._name != _FILE:
            self.fields[self._name] = self._text.decode(errors="replace")

    def _on_end(self) -> None:
        self._ended = True


def _no_form(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"The body is not a form with a file: {why}.",
        hint="Send multipart/form-data with the parts `purpose` and `file`, as OpenAI's clients do.",
    )
