"""What glibc does with freed memory."""

import platform
import subprocess
import sys

import pytest

FREED = """
import ctypes, resource
from lib.run import cli

def faults():  # of memory that was freed before
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [libc.malloc(24 * 2**20) for _ in range(8)]
        for part in parts:
            ctypes.memset(part, 1, 24 * 2**20)
        for part in parts:
            libc.free(part)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_scripts_keep_what_they_free():
    assert page_faults("cli.main(faults)") < page_faults("faults()") / 20


def page_faults(command):
    run = subprocess.run([sys.executable, "-c", FREED + command], capture_output=True, text=True, check=True)
    return int(run.stdout)
