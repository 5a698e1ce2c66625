"""What a file of guest tests does with its command line: runs what is named, one line a test."""

import sys
import time
import traceback
from pathlib import Path
from typing import Callable, List, Sequence

from harness import Failure, exit_on_signals

Test = Callable[..., None]


def _passes(group: str, test: Test, run: Callable[[Test], None]) -> bool:
    began = time.monotonic()
    try:
        run(test)
    except Exception as error:  # pylint: disable=broad-except
        # A failed expectation says all there is to say; anything else needs its place.
        if not isinstance(error, Failure):
            traceback.print_exc()
        print(f"FAIL {group} {test.__name__}: {error}", flush=True)
        return False
    print(f"ok {group} {test.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
    return True


def run_tests(
    group: str, usage: str, tests: Sequence[Test], run: Callable[[Test, Path], None], arguments: List[str]
) -> int:
    """`arguments` are the guest's directory and perhaps names of tests; the exit status comes back."""
    if not arguments:
        print(usage, file=sys.stderr)
        return 2
    exit_on_signals()
    by_name = {test.__name__: test for test in tests}
    unknown = set(arguments[1:]) - set(by_name)
    if unknown:
        print(f"no such test: {' '.join(sorted(unknown))}; there are {' '.join(by_name)}", file=sys.stderr)
        return 2
    chosen = [by_name[name] for name in arguments[1:]] or tests
    guest = Path(arguments[0])
    results = [_passes(group, test, lambda test: run(test, guest)) for test in chosen]
    return 0 if all(results) else 1
