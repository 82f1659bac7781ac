package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completeLimit is how long a shell waits for the daemon after the user has pressed TAB.
const completeLimit = time.Second

// completeFlows lets the shell complete the first argument of every command that takes a flow, by asking the daemons that run here.
func (a *app) completeFlows(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.completeFlows(sub)
	}
	args := strings.FieldsFunc(c.Use, func(r rune) bool { return r == ' ' || r == '|' })
	if c.ValidArgsFunction != nil || !slices.ContainsFunc(args, func(s string) bool {
		s = strings.Trim(s, "[]|.")
		return s == "FLOW" || s == "GROUP" || s == "TENANT/HOST/NAME"
	}) {
		return
	}
	c.ValidArgsFunction = func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.flowNames(c.Context()), cobra.ShellCompDirectiveNoFileComp
	}
}

// flowNames are the flows of all daemons here; none when no daemon answers.
func (a *app) flowNames(ctx context.Context) (names []string) {
	clients, err := a.clients()
	if err != nil {
		return nil
	}
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeLimit)
	defer cancel()
	for _, cl := range clients {
		all, err := cl.Status(ctx)
		if err != nil {
			continue
		}
		var groups []string
		for _, s := range all {
			names = append(names, s.Flow+"\t"+string(s.State))
			if g := s.Group; g != nil && g.Name != "" {
				groups = append(groups, g.Name+"\tgroup, "+g.State)
			}
		}
		names = append(names, slices.Compact(groups)...)
	}
	return names
}
