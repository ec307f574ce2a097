"""Machines come and go, and leave each other alone."""

import gc
import weakref

from sdgpu.kernels.compiled.machine_code import Machine

TEXT = "define void @f() { ret void }"


def test_machines_that_are_freed_leave_the_next_alone():
    """An engine owns and frees what it compiled with: shared, the next machine would crash the process."""
    for count in range(60):
        machine = Machine(TEXT)
        machine.function("f", 0)()
        gone = weakref.ref(machine)
        del machine
        if count % 10 == 0:
            gc.collect()
    gc.collect()
    assert gone() is None
    kept = Machine(TEXT)
    kept.function("f", 0)()


def test_a_function_outlives_the_name_of_its_machine():
    function = Machine(TEXT).function("f", 0)
    gc.collect()
    function()
