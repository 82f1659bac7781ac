// Package version names the build.
package version

import "runtime/debug"

// value is set by the linker: -X github.com/moverd/mover/internal/version.value=...
var value string

// String is the version of the build: from the linker, else from the build's record, else "devel".
func String() string {
	if value != "" {
		return value
	}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "devel-" + s.Value[:12]
			}
		}
	}
	return "devel"
}
