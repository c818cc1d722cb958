//go:build tools

// Package tools pins Kueue's controller, which the tests of the bridge to it run beside our operator.
package tools

import _ "sigs.k8s.io/kueue/cmd/kueue"
