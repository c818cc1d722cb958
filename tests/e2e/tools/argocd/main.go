// Command argocd is the two parts of Argo CD that a sync needs, its application controller and its repo server, and a
// runner for health scripts: `argocd health-tests FOLDER` does what Argo CD's own tests do with resource_customizations.
// `argocd kstatus FILE...` tells what Flux would make of objects.
// Argo CD's own main package also holds its API server and user interface, which a released module cannot build.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	controller "github.com/argoproj/argo-cd/v3/cmd/argocd-application-controller/commands"
	askpass "github.com/argoproj/argo-cd/v3/cmd/argocd-git-ask-pass/commands"
	reposerver "github.com/argoproj/argo-cd/v3/cmd/argocd-repo-server/commands"
	"github.com/argoproj/argo-cd/v3/util/log"
)

func main() {
	klog.SetLogger(log.NewLogrusLogger(log.NewWithCurrentConfig()))
	root := &cobra.Command{Use: "argocd", SilenceUsage: true}
	root.AddCommand(controller.NewCommand(), reposerver.NewCommand(), askpass.NewCommand(), newHealthTests(), newKstatus())
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
