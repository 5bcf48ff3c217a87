"""Entry point of the `clara-flow` command: one place maps errors to exit statuses and messages.

A user never sees a traceback, not even for a Ctrl-C while modules are still being imported: hence no imports up here.
"""

import sys

BUG, INTERRUPTED = 70, 130


def main() -> None:
    """Run the command line and end the process with the right exit status."""
    try:
        from clara_flow.cli.app import app
        from clara_flow.errors import ClaraFlowError

        try:
            app()
        except ClaraFlowError as error:
            _say(str(error))
            sys.exit(error.exit_status)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001  the last line of defence; the traceback is kept
        if _stems_from_ctrl_c(error):
            _say("interrupted")
            sys.exit(INTERRUPTED)
        _say(f"a bug in clara-flow: {type(error).__name__}\nPlease report it with {_keep_traceback(error)}")
        sys.exit(BUG)


def _stems_from_ctrl_c(error: BaseException | None) -> bool:
    """Whether a Ctrl-C was turned into this error: Python does so while it makes a class (`__set_name__`)."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__
    return False


def _keep_traceback(error: BaseException) -> str:
    """Write where it came from to a file of its own; returns its path.

    Kinds and places only: the file is made to be sent to others, and an error's text may quote a patient's data.
    """
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="clara-flow-bug-", suffix=".txt", delete=False) as report:
        cause: BaseException | None = error
        while cause is not None:
            report.writelines([f"{type(cause).__name__}\n", *traceback.format_tb(cause.__traceback__)])
            cause = cause.__cause__ or cause.__context__
        return report.name


def _say(message: str) -> None:
    sys.stderr.write(f"clara-flow: {message}\n")


if __name__ == "__main__":
    main()
