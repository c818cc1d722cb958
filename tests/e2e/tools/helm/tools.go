//go:build tools

// Package tools pins the Helm that the end-to-end tests install the chart with.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
