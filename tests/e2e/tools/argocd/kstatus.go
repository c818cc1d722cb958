package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

func newKstatus() *cobra.Command {
	return &cobra.Command{
		Use:   "kstatus FILE...",
		Short: "Print what kstatus, the library that Flux and kpt judge health by, makes of the object in each file",
		RunE: func(_ *cobra.Command, args []string) error {
			for _, path := range args {
				object, err := readObject(path)
				if err != nil {
					return err
				}
				result, err := status.Compute(object)
				if err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				fmt.Printf("%s %s\n", result.Status, path)
			}
			return nil
		},
	}
}

// readObject keeps whole numbers whole, which kstatus insists on.
func readObject(path string) (*unstructured.Unstructured, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	document, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	object := &unstructured.Unstructured{}
	return object, object.UnmarshalJSON(document)
}
