"""Scripts that complete the commands and flags of `ti-flax` in a shell."""

import contextlib
import io
import re
import runpy
import sys
from collections.abc import Mapping

from ti_flax.runtime.errors import UserError

_FLAG = re.compile(r"^  (?:-\w, )?(--[\w-]+)", re.MULTILINE)
_BEFORE = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}
# After the command its flags, otherwise files.
_SCRIPT = """\
_ti_flax() {
    local word=${COMP_WORDS[COMP_CWORD]} words=
    case $COMP_CWORD:${COMP_WORDS[1]} in
        1:*) words='@COMMANDS@' ;;
@FLAGS@
    esac
    COMPREPLY=()
    if [[ $COMP_CWORD = 1 || $word = -* ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    fi
}
complete -o default -F _ti_flax ti-flax"""


def script(shell: str, modules: Mapping[str, str]) -> str:
    """The script for bash or zsh, of commands and the modules that they run.

    Raises `UserError` for another shell.
    """
    if shell not in _BEFORE:
        raise UserError(f"--completion: expected bash or zsh, found {shell!r}")
    flags = (
        f"        *:{command}) words='{' '.join(_flags(module))}' ;;"
        for command, module in modules.items()
    )
    text = _SCRIPT.replace("@COMMANDS@", " ".join(modules))
    return _BEFORE[shell] + text.replace("@FLAGS@", "\n".join(flags))


def _flags(module: str) -> list[str]:
    """Those that the module's --help shows."""
    before = sys.argv[1:]
    sys.argv[1:] = ["--help"]
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()) as told,
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(SystemExit),
        ):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv[1:] = before
    return sorted({*_FLAG.findall(told.getvalue())})
