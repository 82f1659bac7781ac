package config

import (
	"errors"
	"io/fs"
	"os"

	"github.com/moverd/mover/cost"
)

// LoadPrices reads and checks a price file. Every error is an *Error. A file that is wrong ends no daemon: it is about money, not about bytes.
func LoadPrices(file File) (*cost.Prices, error) {
	path, err := file.path()
	if err != nil {
		return nil, &Error{File: string(file), Text: err.Error()}
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Text: "no such file; moverd.yaml(5) has the form of a price file"}
	} else if err != nil {
		return nil, &Error{File: path, Text: err.Error()}
	}
	return cost.Parse(path, raw)
}
