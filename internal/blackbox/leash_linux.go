package blackbox

import "syscall"

// leash has the kernel kill the box when the harness dies, however it dies. The signal follows the thread that started
// the process; Go ends a thread only if a goroutine locked to it ends, which no harness does.
func leash() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
