"""Owns the sandbox's seccomp filter: which system calls the kernel refuses a child."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

from worker.system_calls import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, last_error, libc

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_CLONE_THREAD = 0x00010000
_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP = 0x5412, 0x541C, 0x8901, 0x8902
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_PR_SET_MM, _PR_SET_PTRACER = 35, 0x59616D61
_AF_UNIX, _NOT_A_STREAM = 1, 0b10

# (x86-64, aarch64) numbers of calls that no compression job makes; None where an architecture lacks one.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # sockets
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # other programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # memory and messages that processes of one user share
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "memfd_secret": (447, 447),
    # identity
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "setgroups": (116, 159), "capset": (126, 91), "personality": (135, 92), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "move_mount": (429, 429), "open_tree": (428, 428), "open_tree_attr": (467, 467), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    # what Landlock does not guard: links to, and attributes of, files that are not the job's
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None),
    "mknodat": (259, 33), "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # the kernel's own machinery
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "reboot": (169, 142), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "syslog": (103, 116), "vhangup": (153, 58), "uselib": (134, None),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
}  # fmt: skip
# CUDA binds an abstract unix socket, listens, and does not start where it may not. Nobody is served: without accept
# nothing flows from who connects, without connect, socketpair and the calls that send nothing flows out, and no name in
# the file system is taken, for Landlock allows making a socket nowhere.
_CUDA_STARTS_WITH = {"socket", "bind", "listen"}
_CLONE, _CLONE3, _PRCTL, _IOCTL, _FCNTL = (56, 220), (435, 435), (157, 167), (16, 29), (72, 25)
# Memory that stays in use while it is mapped nowhere, where the watch over resident memory cannot see it.
_MEMFD_CREATE, _MMAP = (319, 279), (9, 222)
# The first argument is a process: only this one may be named.
_ON_ITSELF = {
    "kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
_ON_ITSELF_OR_ZERO = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}


def number_of(call: str) -> int:
    """The number of one of the denied calls on this processor; -1: it has none."""
    number = _DENIED[call][0 if platform.machine() == "x86_64" else 1]
    return -1 if number is None else number


def seccomp_works() -> bool:
    """Whether there is a filter for this processor at all."""
    return sys.platform == "linux" and platform.machine() in _AUDIT_ARCH and sys.maxsize > 2**32


def refuse_system_calls(*, gpu: bool) -> None:
    """Put the filter over every thread of this process, for good.

    Args:
        gpu: whether it may make the calls that CUDA does not start without.

    Raises:
        OSError: there is no filter for this processor, or the kernel refuses it.
    """
    if not seccomp_works():
        raise OSError(errno.EOPNOTSUPP, f"no seccomp filter for {platform.machine()}")
    program = b"".join(_filter(platform.machine(), os.getpid(), gpu=gpu))
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    reference = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    call = 317 if platform.machine() == "x86_64" else 277
    if libc.syscall(call, 1, 1, ctypes.byref(reference)):  # set the filter, on every thread
        raise last_error("seccomp")


def _filter(machine: str, pid: int, *, gpu: bool) -> list[bytes]:
    """A BPF program over `struct seccomp_data`: number at 0, architecture at 4, arguments from 16, eight bytes each."""
    column = 0 if machine == "x86_64" else 1
    program = [
        _load(4),
        _jump(_JUMP_IF_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _return(_KILL),
        _load(0),
    ]
    if machine == "x86_64":  # the x32 numbers would go round the list
        program += [_jump(_JUMP_IF_AT_LEAST, 0x40000000, 0, 1), _return(_ERRNO | errno.ENOSYS)]

    def case(numbers: tuple[int | None, int | None], block: list[bytes]) -> None:
        number = numbers[column]
        if number is not None:
            # Past the block otherwise; the accumulator then still holds the number.
            program.extend([_jump(_JUMP_IF_EQUAL, number, 0, len(block)), *block])

    no = _return(_ERRNO | errno.EPERM)
    yes = _return(_ALLOW)
    for name, numbers in _DENIED.items():
        if not (gpu and name in _CUDA_STARTS_WITH):
            case(numbers, [no])
    # Threads are allowed, processes are not; clone3 hides its flags in memory, so libc must fall back to clone.
    case(_CLONE, [_load(16), _jump(_JUMP_IF_SET, _CLONE_THREAD, 0, 1), yes, no])
    case(_CLONE3, [_return(_ERRNO | errno.ENOSYS)])
    if gpu:
        # The family and the type are ints: the kernel, too, looks at 32 bits of each register alone. Of the types of a
        # unix socket, those for single messages have this bit; they would hear from outside without being connected.
        kind = [_load(24), _jump(_JUMP_IF_SET, _NOT_A_STREAM, 1, 0)]
        case(_DENIED["socket"], [_load(16), _jump(_JUMP_IF_EQUAL, _AF_UNIX, 0, len(kind) + 1), *kind, yes, no])
    else:  # pinned memory needs both
        case(_MEMFD_CREATE, [no])
        both = [_jump(_JUMP_IF_SET, _MAP_ANONYMOUS, 0, 1), _jump(_JUMP_IF_SET, _MAP_SHARED, 1, 0)]
        case(_MMAP, [_load(16 + 8 * 3), *both, yes, no])
    for numbers in _ON_ITSELF.values():
        case(numbers, [_load(16), _jump(_JUMP_IF_EQUAL, pid, 0, 1), yes, no])
    for numbers in _ON_ITSELF_OR_ZERO.values():
        case(numbers, [_load(16), _jump(_JUMP_IF_EQUAL, pid, 1, 0), _jump(_JUMP_IF_EQUAL, 0, 0, 1), yes, no])
    for numbers, argument, values in (
        (_PRCTL, 0, (PR_SET_PDEATHSIG, PR_SET_DUMPABLE, _PR_SET_MM, _PR_SET_PTRACER)),
        (_IOCTL, 1, (_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP)),
        (_FCNTL, 1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX)),  # a file signals its owner, whichever process that is
    ):
        tests = [_jump(_JUMP_IF_EQUAL, value, len(values) - index, 0) for index, value in enumerate(values)]
        case(numbers, [_load(16 + 8 * argument), *tests, yes, no])
    program.append(yes)
    return program


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, offset)


def _jump(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", kind, if_true, if_false, value)


def _return(verdict: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, verdict)
