"""Every error that a user of llavakit can meet.

One tree; catching the root catches all of them. Each error is raised with one sentence
that says what was wrong and what to do. Where Python has a fitting built-in class, the
error is that too, so that ``except ValueError`` and ``except TimeoutError`` work as usual.

::

    LlavaKitError
    ├── InputError (ValueError)            the request cannot be met as it is
    │   ├── ImageError                     an image cannot be used
    │   │   ├── ImageDecodeError           truncated, empty, or not an image at all
    │   │   ├── ImageTooLargeError         over the pixel or byte cap
    │   │   └── UnsupportedImageError      a format or kind that is not on the allow-list
    │   ├── VideoError                     a video cannot be used
    │   │   └── VideoTooLargeError         over the cap on pixels, seconds, frames or time
    │   ├── SourceError                    the source of an image or a video cannot be reached
    │   │   ├── SourceNotAllowedError      SourcePolicy forbids it
    │   │   ├── SourceNotFoundError        no such file, or the server says 404
    │   │   └── SourceFetchError           the network or the disk failed
    │   ├── DocumentError                  a PDF or another document cannot be read
    │   │   ├── PasswordError              it is encrypted, and no password opens it
    │   │   └── RenderError                a page took too long, or brought its renderer down
    │   │       └── RendererKilledError    the system ended the renderer: try again
    │   ├── UnsupportedContentError        what this model cannot take, or an unknown block
    │   ├── MessageError                   roles or content that are not a conversation
    │   ├── ParameterError                 a sampling parameter out of its range
    │   ├── SchemaError                    a JSON schema, regex or grammar that cannot be compiled
    │   ├── DataError                      training data with faults
    │   └── ContextLengthError             more tokens than the model can hold
    ├── ModelError                         the model cannot be loaded
    │   ├── ModelNotFoundError             no such alias, directory or hub id
    │   └── CheckpointError                files are missing, broken or do not fit together
    ├── EngineError                        the inference core could not finish the request
    │   ├── QueueFullError                 too many requests are waiting
    │   ├── RequestTimeoutError (TimeoutError)
    │   ├── RequestCancelledError          closed or cancelled by its caller
    │   ├── OutOfMemoryError               the device has no room, even for this request alone
    │   └── EngineClosedError              close() was called, or the engine died
    ├── RemoteError                        a server that runs the model answered with an error
    └── MissingDependencyError (ImportError)  an optional extra is not installed
"""

from __future__ import annotations


class LlavaKitError(Exception):
    """Root of all errors that llavakit raises on purpose.

    Args:
        args: the message, for the author of a program.
        public: the message for a remote caller, where the other one names settings of Python,
            or what a stranger must not learn (addresses, answers of the name service).

    Attributes:
        public: as given; None where it is not.
    """

    def __init__(self, *args: object, public: str | None = None) -> None:
        super().__init__(*args)
        self.public = public


class InputError(LlavaKitError, ValueError):
    """The request cannot be met as it is; nothing was run."""


class ImageError(InputError):
    """An image cannot be used."""


class ImageDecodeError(ImageError):
    """The bytes are truncated, empty, damaged, or not an image."""


class ImageTooLargeError(ImageError):
    """The image is over the pixel or byte cap."""


class UnsupportedImageError(ImageError):
    """The format or the kind of object is not on the allow-list."""


class VideoError(InputError):
    """A video cannot be used: damaged, of an unknown container, or not a video."""


class VideoTooLargeError(VideoError):
    """The video is over the cap on pixels, seconds, frames or decoding time."""


class SourceError(InputError):
    """The source of an image or a video cannot be reached."""


class SourceNotAllowedError(SourceError):
    """The :class:`~llavakit.SourcePolicy` forbids this source."""


class SourceNotFoundError(SourceError):
    """There is no such file, or the server answered 404 or 410."""


class SourceFetchError(SourceError):
    """Reading the source failed: network, deadline, disk."""


class DocumentError(InputError):
    """A PDF or another document cannot be read."""


class PasswordError(DocumentError):
    """The document is encrypted, and there is no password for it, or not the right one."""


class RenderError(DocumentError):
    """Rendering a page took too much time or memory, or brought the renderer's process down."""


class RendererKilledError(RenderError):
    """The renderer's process was ended from outside, twice; the page itself may be sound."""


class UnsupportedContentError(InputError):
    """Content of a kind that the model cannot take (audio, unknown blocks; video for most)."""


class MessageError(InputError):
    """The roles or the content of the messages are not a conversation."""


class ParameterError(InputError):
    """A sampling parameter is out of its range or contradicts another one."""


class SchemaError(InputError):
    """A JSON schema, regular expression or grammar cannot be compiled."""


class DataError(InputError):
    """Training data has faults; the message names the first ones by their lines."""


class ContextLengthError(InputError):
    """The prompt and the answer do not fit into the model's context.

    Attributes:
        prompt_tokens: tokens of the prompt, images included.
        max_tokens: tokens asked for the answer.
        context_length: tokens that the model can hold.
    """

    def __init__(
        self, message: str, *, prompt_tokens: int = 0, max_tokens: int = 0, context_length: int = 0
    ) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.context_length = context_length


class ModelError(LlavaKitError):
    """The model cannot be loaded."""


class ModelNotFoundError(ModelError):
    """No alias, local directory or hub id of this name."""


class CheckpointError(ModelError):
    """A checkpoint's files are missing, broken, or do not fit together."""


class EngineError(LlavaKitError):
    """The inference core could not finish the request."""


class QueueFullError(EngineError):
    """Too many requests are waiting; try again later or raise ``max_waiting``."""


class RequestTimeoutError(EngineError, TimeoutError):
    """The request did not finish within its timeout; it was cancelled."""


class RequestCancelledError(EngineError):
    """The request was closed or cancelled by its caller."""


class OutOfMemoryError(EngineError):
    """The device has no room for this request, even alone."""


class EngineClosedError(EngineError):
    """The engine was closed or has died; ``llavakit.load`` gives a fresh one."""


class RemoteError(LlavaKitError):
    """A server that runs the model answered with an error.

    Attributes:
        status: the HTTP status code, or None where no answer came.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class MissingDependencyError(LlavaKitError, ImportError):
    """An optional part of llavakit is not installed; the message names the extra."""
