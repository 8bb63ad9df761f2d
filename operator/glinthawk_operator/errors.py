"""The errors of the operator, in one tree.

    OperatorError
    |-- InvalidSettings   the operator was started wrongly                (exit code 2)
    |-- InvalidResource   a GlinthawkDeployment that cannot work as written
    |-- ApiError          the API server's answer, or that there was none
    |   |-- ApiNotFound     404: the object, or its kind, does not exist
    |   |-- ApiConflict     409: changed, made or deleted meanwhile; read again
    |   |-- ApiForbidden    401, 403: the role lacks a verb, or a quota is full
    |   |-- ApiInvalid      400, 422: the object is refused as it is
    |   `-- ApiUnavailable  429, 5xx, no answer by the deadline; try again later
    `-- GatewayError      the control API of a gateway
        |-- GatewayAway     nobody answers
        `-- GatewayRefused  an answer that is no success

Foreign errors become these once: `cluster.py` for the API server, `gateway_client.py` for gateways.
"""


class OperatorError(Exception):
    """Base of every error that the operator raises on purpose."""


class InvalidSettings(OperatorError):
    """The operator cannot start with the settings it was given."""


class InvalidResource(OperatorError):
    """A resource passed the schema and still cannot work as it is written."""


class ApiError(OperatorError):
    """A call of the API server failed.

    Args:
        message: what was asked, the answer, and what to do.
        status: of the answer, None when there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ApiNotFound(ApiError):
    """The object, or its kind, does not exist."""


class ApiConflict(ApiError):
    """The object was changed, made or deleted by someone else meanwhile."""


class ApiForbidden(ApiError):
    """The operator may not do that: its role lacks a verb, or admission refused it."""


class ApiInvalid(ApiError):
    """The API server refuses the object as it is."""


class ApiUnavailable(ApiError):
    """The API server is busy, failing or away.

    Args:
        message: see `ApiError`.
        retry_after_s: how long it asked to wait, None if it did not say.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class GatewayError(OperatorError):
    """A call of a gateway's control API failed."""


class GatewayAway(GatewayError):
    """No gateway answers."""


class GatewayRefused(GatewayError):
    """The gateway answered, and did not do what it was asked.

    Args:
        message: what it said.
        status: of the answer.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
