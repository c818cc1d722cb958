//go:build tools

// Package tools pins KubeRay's operator, which the control-plane benchmark runs beside ours.
package tools

import _ "github.com/ray-project/kuberay/ray-operator"
