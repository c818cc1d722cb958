package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/argoproj/gitops-engine/pkg/health"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/argoproj/argo-cd/v3/util/lua"
)

type healthTests struct {
	Tests []struct {
		InputPath    string              `json:"inputPath"`
		HealthStatus health.HealthStatus `json:"healthStatus"`
	} `json:"tests"`
}

func newHealthTests() *cobra.Command {
	return &cobra.Command{
		Use:   "health-tests FOLDER",
		Short: "Run every health.lua below FOLDER over the fixtures of the health_test.yaml beside it, without Lua's libraries",
		Args:  cobra.ExactArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return runHealthTests(args[0]) },
	}
}

func runHealthTests(folder string) error {
	scripts, err := filepath.Glob(filepath.Join(folder, "*", "*", "health.lua"))
	if err != nil {
		return err
	}
	passed, failed := 0, 0
	for _, script := range scripts {
		kind := filepath.Dir(script)
		code, err := os.ReadFile(script)
		if err != nil {
			return err
		}
		var list healthTests
		if err := readYAML(filepath.Join(kind, "health_test.yaml"), &list); err != nil {
			return err
		}
		for _, test := range list.Tests {
			object := &unstructured.Unstructured{}
			if err := readYAML(filepath.Join(kind, test.InputPath), &object.Object); err != nil {
				return err
			}
			found, err := lua.VM{}.ExecuteHealthLua(object, string(code))
			if err != nil {
				return fmt.Errorf("%s on %s: %w", script, test.InputPath, err)
			}
			if *found != test.HealthStatus {
				failed++
				fmt.Printf("%s/%s: expected %+v, found %+v\n", kind, test.InputPath, test.HealthStatus, *found)
				continue
			}
			passed++
		}
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		return fmt.Errorf("health tests in %s failed", folder)
	}
	return nil
}

func readYAML(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
